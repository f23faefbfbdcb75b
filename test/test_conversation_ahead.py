"""What is computed while the user speaks: a picture, then the sound window by window. The turn says what a fresh run of the whole
says, and computes only what is new; a loud end changes the mel of the beginning, and then the beginning is computed again."""

import numpy as np
import pytest
from oracle import load
from test_conversation import GREEDY, assert_same, end_of, rows_of
from test_equality import image, says, text, user

from offline.quantization.spy import Call, spy
from omni_ros.pipeline.conversation import Conversation
from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.request import Request, TextDelta
from omni_ros.preprocess.audio import SAMPLE_RATE

WINDOW = 8 * SAMPLE_RATE
HEADER = 12  # rows at most that end the user's message and open the assistant's


def speech(*levels: float, seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    """Noise that goes through `levels`, each `seconds` long; 0 is digital silence."""
    noise = np.random.default_rng(seed).standard_normal(round(len(levels) * seconds * SAMPLE_RATE))
    return (noise * np.repeat(levels, round(seconds * SAMPLE_RATE))).astype(np.float32)


def sound(pcm: np.ndarray) -> dict:
    return {"type": "audio", "audio": pcm}


def so_far(pcm: np.ndarray, seconds: float) -> dict:
    """The beginning of what is being said."""
    return {**sound(pcm[: round(seconds * SAMPLE_RATE)].copy()), "unfinished": True}


def windows_of(calls: list[Call]) -> int:
    """How many windows of sound were encoded."""
    return sum(call.engine == "multimodal/audio" for call in calls)


def listen(conversation: Conversation, history: list[dict], seen: list[dict], pcm: np.ndarray) -> dict:
    """Feed what is known of a turn while it is said, as a dialogue does; returns the user's message."""
    conversation.feed([*history, user(*seen)] if seen else history)
    for seconds in range(1, len(pcm) // SAMPLE_RATE, 2):
        conversation.feed([*history, user(*seen, so_far(pcm, seconds))])
    return user(*seen, sound(pcm))


def test_at_the_end_only_the_rest_is_computed(pipeline, conversation):
    """Of 28 s with a picture: one window of 4 s, its rows, and the opening of the answer; in Thinker and Talker."""
    history = [says("system", "you are a robot"), user(text("hello")), says("assistant", "how do you do")]
    pcm = speech(*[0.1] * 28)
    message = listen(conversation, history, [image(96, 128)], pcm)
    request = Request([*history, message], **GREEDY)
    with spy(pipeline) as calls:
        got = end_of(conversation.generate(request))
    assert windows_of(calls) == 1 and not [call for call in calls if call.engine == "multimodal/visual"]
    assert 52 < rows_of(calls, "thinker") <= 52 + HEADER
    assert got.metrics["prompt_tokens"] - got.metrics["reused_tokens"] == rows_of(calls, "thinker")
    assert 52 + 9 < next(len(c.inputs["inputs_embeds"]) for c in calls if c.engine == "talker") <= 52 + 9 + HEADER
    assert_same(got, end_of(pipeline.generate(request)))


def test_each_window_is_encoded_once(pipeline, conversation):
    with spy(pipeline) as calls:
        message = listen(conversation, [], [image(96, 128)], speech(*[0.1] * 28))
        end_of(conversation.generate(Request([message], **GREEDY)))
    assert windows_of(calls) == 4 and sum(call.engine == "multimodal/visual" for call in calls) == 1


LOUD_LATER = {  # levels per second; windows that the turn must compute
    "the loudest is in the first window": ([0.1] * 3 + [0.5] + [0.0] * 3 + [0.1] * 13, 1),
    "silence, then a loud end": ([0.1] * 4 + [0.0] * 4 + [0.1] * 4 + [0.0] * 4 + [0.1] * 3 + [0.9], 3),
    "a loud end that changes one window": ([0.1] * 12 + [0.0] * 4 + [0.1] * 3 + [0.9], 2),
    "a loud last window that was heard in time": ([0.1] * 4 + [0.0] * 4 + [0.1] * 8 + [0.9] + [0.1] * 3, 1),
}


@pytest.mark.parametrize("case", LOUD_LATER)
def test_a_loud_end_changes_the_beginning(pipeline, conversation, case):
    """Whisper's mel has a floor 80 dB below its loudest."""
    levels, again = LOUD_LATER[case]
    message = listen(conversation, [], [image(64, 96)], speech(*levels))
    request = Request([message], **GREEDY)
    with spy(pipeline) as calls:
        got = end_of(conversation.generate(request))
    assert windows_of(calls) == again
    assert_same(got, end_of(pipeline.generate(request)))


@pytest.mark.parametrize("case", ["silence, then a loud end", "a loud end that changes one window"])
def test_turns_equal_transformers(name, conversation, checkpoints, case):
    """Two turns, each fed while it is said; the oracle reads the whole each time."""
    reference = load(checkpoints[name])
    history = [says("system", "hello world")]
    for picture, pcm in ((image(64, 96), speech(*LOUD_LATER[case][0])), (image(96, 64, 1), speech(*[0.1] * 19, seed=1))):
        messages = [*history, listen(conversation, history, [picture], pcm)]
        finished = end_of(conversation.generate(Request(messages, **GREEDY)))
        expected = reference.generate(messages, max_generate_length=7, max_audio_length=9)
        assert finished.token_ids == expected.token_ids
        np.testing.assert_array_equal(finished.codes, expected.codes)
        history += [user(messages[-1]["content"][1]), says("assistant", finished.text)]  # the picture is forgotten


@pytest.mark.parametrize("seed", range(4))
def test_random_turns(pipeline, conversation, seed, monkeypatch):
    """Levels over 100 dB, silence, feeds that are cancelled, pauses that were answered and not meant, interruptions, and
    prompts that are read in short pieces."""
    rng = np.random.default_rng(seed)
    if seed % 2:
        for engine in (pipeline.engines["thinker"], pipeline.engines["talker"]):
            monkeypatch.setattr(engine, "max_rows", int(rng.integers(20, 200)))
    history, reused = [says("system", "you are a robot")], []
    for _ in range(4):
        pcm = speech(
            *rng.choice([0.0, 1e-5, 1e-3, 0.03, 0.1, 0.9], int(rng.integers(2, 57))), seconds=0.5, seed=int(rng.integers(99))
        )
        seen = [image(*rng.choice([64, 96, 128], 2), int(rng.integers(99)))] if rng.random() < 0.7 else []
        told = np.sort(rng.uniform(0.5, len(pcm) / SAMPLE_RATE, len(pcm) // SAMPLE_RATE // 4))
        for seconds in (0.0, *told):
            parts = [*seen, so_far(pcm, seconds)] if seconds else seen
            messages = [*history, user(*parts)] if parts else history
            feed(pipeline, conversation, messages, int(rng.integers(8)) if rng.random() < 0.4 else None)
            if seconds and rng.random() < 0.3:  # a pause: the answer begins, and the person goes on
                paused = sound(pcm[: round(seconds * SAMPLE_RATE) - 100].copy())
                close_at_first_word(conversation.generate(Request([*history, user(*seen, paused)], **GREEDY)))
        message = user(*seen, sound(pcm))
        request = Request([*history, message], **GREEDY)
        if rng.random() < 0.3:
            close_at_first_word(conversation.generate(request))
        got = end_of(conversation.generate(request))
        assert_same(got, end_of(pipeline.generate(request)))
        reused.append(got.metrics["reused_tokens"])
        history = [history[0], user(sound(pcm[-WINDOW:])), says("assistant", got.text)]
    assert max(reused) > 104


def feed(pipeline: Pipeline, conversation: Conversation, messages: list[dict], runs: int | None) -> None:
    """Cancelled after so many runs of an engine."""
    with spy(pipeline):
        if runs is not None:
            for engine in pipeline.engines.values():
                engine.run = cancelling(conversation, engine.run, [runs])  # spy takes it away
        conversation.feed(messages)


def cancelling(conversation: Conversation, run, left: list[int]):
    def counted(inputs, state=None):
        left[0] -= 1
        if left[0] < 0:
            conversation.cancel()
        return run(inputs, state)

    return counted


def close_at_first_word(events) -> None:
    for event in events:
        if isinstance(event, TextDelta):
            break
    events.close()


def test_equal_windows_in_one_clip(pipeline, conversation):
    """A sound that repeats itself every 8 s: its windows are one piece, at several places."""
    once = speech(*[0.1] * 8)
    once[-400:] = once[:400] = 0  # so that it does not show at the edges of a window whether there is another one beside it
    message = user(sound(np.tile(once, 3)))
    request = Request([message, says("assistant", "yes"), user(text("again"))], **GREEDY)
    with spy(pipeline) as calls:
        got = end_of(conversation.generate(request))
    assert windows_of(calls) == 1
    assert_same(got, end_of(pipeline.generate(request)))
