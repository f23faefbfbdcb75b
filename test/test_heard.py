"""How much of an interrupted answer the user has heard, in words."""

import pytest

from omni_ros.dialogue.heard import FRAME, SAMPLE_RATE, TOKENS_PER_SECOND, Answer
from omni_ros.dialogue.history import History

WORDS = ["The ", "capital ", "of ", "France ", "is ", "Paris."]


def answer(seconds: float, whole: bool) -> Answer:
    return Answer([(word, 1) for word in WORDS], samples=round(seconds * SAMPLE_RATE), whole=whole)


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.0, ""), (0.09, ""), (0.13, "The"), (0.5, "The capital of"), (0.99, "The capital of France is"), (1.0, "".join(WORDS))],
)
def test_of_a_whole_speech_the_same_share_of_the_text(share, words):
    whole = answer(4.0, whole=True)
    assert whole.heard(round(share * whole.samples), TOKENS_PER_SECOND) == words


def test_of_an_unfinished_speech_as_much_as_is_said_in_that_time():
    growing = answer(2.0, whole=False)
    assert growing.heard(0, 3.5) == ""
    assert growing.heard(round(0.2 * SAMPLE_RATE), 3.5) == ""
    assert growing.heard(round(0.9 * SAMPLE_RATE), 3.5) == "The capital of"
    assert growing.heard(round(60 * SAMPLE_RATE), 3.5) == "".join(WORDS)


def test_never_more_than_the_frames_that_were_heard_took_in():
    """A frame takes in one token, however fast somebody is thought to speak."""
    assert answer(1.0, whole=False).heard(2 * FRAME, tokens_per_second=1000) == "The capital of"


def test_a_token_that_ends_inside_a_character_adds_its_text_later():
    emoji = Answer([("Hi ", 1), ("", 1), ("", 1), ("\N{GRINNING FACE} ", 1), ("there", 1)], samples=SAMPLE_RATE, whole=False)
    assert emoji.heard(SAMPLE_RATE, 3.0) == "Hi"
    assert emoji.heard(SAMPLE_RATE, 4.0) == "Hi \N{GRINNING FACE}"


def test_scripts_without_spaces_are_cut_between_characters():
    chinese = Answer([("法国的首都是巴黎。", 6)], samples=SAMPLE_RATE, whole=True)
    assert chinese.heard(SAMPLE_RATE // 2, 3.5) == "法国的首"


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
