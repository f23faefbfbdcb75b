"""How much of an interrupted answer the user has heard, in words."""

import numpy as np
import pytest

from omni_ros.dialogue.heard import FRAME, SAMPLE_RATE, TOKENS_PER_SECOND, Answer
from omni_ros.dialogue.history import History

WORDS = ["The ", "capital ", "of ", "France ", "is ", "Paris."]


def sound(seconds: float, level: float = 0.1) -> np.ndarray:
    return np.full(round(seconds * SAMPLE_RATE), level, np.float32)


def spoken(pieces: list[tuple[str, int]], *pcm: np.ndarray, whole: bool) -> Answer:
    answer = Answer(pieces, whole=whole)
    for piece in pcm:
        answer.hear(piece)
    return answer


def answer(seconds: float, whole: bool) -> Answer:
    return spoken([(word, 1) for word in WORDS], sound(seconds), whole=whole)


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.0, ""), (0.11, ""), (0.16, "The"), (0.53, "The capital of"), (0.99, "The capital of France is"), (1.0, "".join(WORDS))],
)
def test_of_a_whole_speech_the_same_share_of_the_text(share, words):
    whole = answer(4.0, whole=True)
    assert whole.heard(round(share * whole.samples), TOKENS_PER_SECOND) == words


def test_of_an_unfinished_speech_as_much_as_is_said_in_that_time():
    growing = answer(2.0, whole=False)
    assert growing.heard(0, 3.5) == ""
    assert growing.heard(round(0.2 * SAMPLE_RATE), 3.5) == ""
    assert growing.heard(round(0.9 * SAMPLE_RATE), 3.5) == "The capital"  # the third token may not be over
    assert growing.heard(round(1.0 * SAMPLE_RATE), 3.5) == "The capital of"
    assert growing.heard(round(60 * SAMPLE_RATE), 3.5) == "".join(WORDS)


def test_silence_before_and_between_words_speaks_none():
    """As trained voices speak: half a second of nothing, and a rest at each comma."""
    pieces = [("One, ", 2), ("two, ", 2), ("three.", 2)]
    pcm = [sound(0.45, 1e-4), sound(0.4), sound(0.6, 1e-4), sound(0.4), sound(0.6, 1e-4), sound(0.5), sound(0.3, 1e-4)]
    ends = {"": 0.0, "One,": 0.85, "One, two,": 1.85, "One, two, three.": 2.95}
    chunks = np.split(np.concatenate(pcm), range(1365, 74000, FRAME))
    whole, growing = spoken(pieces, *pcm, whole=True), spoken(pieces, *chunks, whole=False)
    for at in np.arange(0.0, 3.2, 0.05):
        samples = round(at * SAMPLE_RATE)
        for heard in (whole.heard(samples, 3.5), growing.heard(samples, 6 / 1.3)):
            assert ends[heard] <= at
    assert whole.heard(round(1.4 * SAMPLE_RATE), 3.5) == "One," and whole.heard(round(2.4 * SAMPLE_RATE), 3.5) == "One, two,"
    assert whole.heard(whole.samples, 3.5) == "One, two, three."
    assert whole.voice(whole.samples) == pytest.approx(1.3, abs=0.02)


def test_never_more_than_the_frames_that_were_heard_took_in():
    """A frame takes in one token, however fast somebody is thought to speak."""
    assert answer(1.0, whole=False).heard(2 * FRAME, tokens_per_second=1000) == "The capital of"


def test_a_token_that_ends_inside_a_character_adds_its_text_later():
    emoji = spoken([("Hi ", 1), ("", 1), ("", 1), ("\N{GRINNING FACE} ", 1), ("there", 1)], sound(2.0), whole=False)
    assert emoji.heard(SAMPLE_RATE, 3.4) == "Hi"
    assert emoji.heard(SAMPLE_RATE, 4.5) == "Hi \N{GRINNING FACE}"


def test_scripts_without_spaces_are_cut_between_characters():
    chinese = spoken([("法国的首都是巴黎。", 6)], sound(4.0), whole=True)
    assert chinese.heard(SAMPLE_RATE * 2, 3.5) == "法国的首"


def test_an_interrupted_exchange_says_so_and_one_without_a_word_is_the_question_only():
    history = History(turns=3)
    question = [{"type": "text", "text": "What is the capital of France?"}]
    history.add_interrupted(question, "The capital of")
    history.add_interrupted(question, "")
    messages = history.messages("")
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"] == [{"type": "text", "text": "The capital of—"}]


def test_sound_in_the_history_is_the_same_object():
    history = History(turns=1)
    sound = object()
    history.add([{"type": "audio", "audio": sound}], "Yes.")
    assert history.messages("")[0]["content"][0]["audio"] is sound
