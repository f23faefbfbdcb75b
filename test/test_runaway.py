"""A model that repeats itself, is silent or does not stop ends its turn with a typed error; an ordinary answer never does."""

import time

import numpy as np
import pytest

from omni_ros.errors import InputError, RunawayError
from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.request import AudioChunk, Finished, Request, TextDelta, TextFinished
from omni_ros.pipeline.runaway import FRAMES_PER_TOKEN, PERIODS, Cycle, RunawayGuard

LIMIT = 40
HELLO = [{"role": "user", "content": "what do you see and hear"}]
SAMPLED = {"seed": 5, "max_generate_length": 24, "max_audio_length": 60}


def first_cycle(numbers, limit: int = LIMIT) -> tuple[int, int, int] | None:
    """(how many numbers were taken, period, repeated) when the cycle is noticed."""
    cycle = Cycle(limit)
    for count, number in enumerate(numbers, 1):
        period, repeated = cycle(int(number))
        if period:
            return count, period, repeated
    return None


# ---- the guard alone --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("period", [1, 2, 3, 7, 13, PERIODS])
def test_every_cycle_is_noticed_once_it_has_come_round_long_enough(period):
    before = np.arange(1000, 1050)
    numbers = np.concatenate([before, np.resize(np.arange(period), 500)])
    enough = max(LIMIT, 3 * period)
    assert first_cycle(numbers) == (50 + period + enough, period, enough)


def test_the_same_number_more_than_once_in_a_cycle():
    assert first_cycle([5, 5, 7, 5] * 50) == (4 + LIMIT, 4, LIMIT)


@pytest.mark.parametrize(
    "numbers",
    [
        [*([7] * LIMIT), 8] * 20,  # always one short
        np.resize(np.arange(PERIODS + 1), 1000),  # longer than what is looked for
        np.random.default_rng(0).integers(0, 2, 5000),  # a coin
        [n for count in range(200) for n in (11, 12, 13, 1000 + count)],  # a list: its items begin alike
    ],
)
def test_what_only_resembles_a_cycle_is_none(numbers):
    assert first_cycle(numbers) is None


def test_a_low_limit_does_not_take_a_repeated_sentence_for_a_cycle():
    sentence = list(range(20))
    assert first_cycle(sentence * 3, limit=5) is None
    assert first_cycle(sentence * 4, limit=5) == (80, 20, 60)


def test_a_step_costs_the_same_however_long_the_turn_is():
    guard, numbers = RunawayGuard(10**6), np.random.default_rng(0).integers(0, 1000, 1000).tolist()

    def thousand() -> float:
        began = time.thread_time()
        for number in numbers:
            guard.token(number)
        return time.thread_time() - began

    first = min(thousand() for _ in range(5))
    for _ in range(30):
        thousand()
    assert min(thousand() for _ in range(5)) < 3 * first
    assert len(guard.tokens.recent) == PERIODS and len(guard.tokens.runs) <= PERIODS  # and no memory


def test_silence_and_constant_levels():
    rate, guard = 1920, RunawayGuard(LIMIT)
    voice = np.random.default_rng(0).normal(0, 0.1, 10 * rate).astype(np.float32)
    for quiet in (np.zeros(LIMIT * rate, np.float32), np.full(LIMIT * rate, 0.3, np.float32)):
        assert guard.sound(voice, rate) is None  # sound in between begins the count again
        assert guard.sound(quiet, rate) is None
    error = guard.sound(np.full(rate // 2, 0.3, np.float32), rate)
    assert isinstance(error, RunawayError) and "no sound" in str(error)


def test_silence_inside_one_long_piece():
    pcm = np.zeros(1920 * (LIMIT + 20), np.float32)
    pcm[::3840] = 0.5
    assert RunawayGuard(LIMIT).sound(pcm, 1920) is None
    pcm[1920 * 5 : 1920 * (LIMIT + 7)] = 0
    assert "no sound" in str(RunawayGuard(LIMIT).sound(pcm, 1920))


def test_speech_may_last_as_long_as_slow_words_do_and_no_longer():
    guard, codes = RunawayGuard(LIMIT), np.random.default_rng(0).integers(0, 2000, 1000)
    longest = int(LIMIT + FRAMES_PER_TOKEN * 10)
    assert not any(guard.frame(int(codes[n]), n, 10) for n in range(1, longest + 1))
    assert "does not end" in str(guard.frame(int(codes[0]), longest + 1, 10))


def test_without_a_limit_nothing_is_watched():
    guard = RunawayGuard(0)
    assert not any(guard.token(1) or guard.frame(1, 10**6, 1) for _ in range(2000))
    assert guard.sound(np.zeros(10**6, np.float32), 1920) is None


@pytest.mark.parametrize("limit", [-1, 1.5, True, None, "100"])
def test_wrong_limits(limit):
    with pytest.raises(InputError, match="runaway_limit"):
        Request(HELLO, runaway_limit=limit)


# ---- whole turns --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def pipeline(engine_dirs):
    opened = Pipeline.open(engine_dirs["plain"], threads=1)
    yield opened
    opened.close()


def play(pipeline: Pipeline, **options) -> tuple[Finished, list]:
    events = list(pipeline.generate(Request(HELLO, **{**SAMPLED, **options})))
    return events[-1], events[:-1]


def run_away(pipeline: Pipeline, **options) -> tuple[list, RunawayError]:
    """The events until the error, and the error."""
    events = []
    with pytest.raises(RunawayError) as caught:
        for event in pipeline.generate(
            Request(HELLO, **{**SAMPLED, "max_generate_length": 900, "max_audio_length": 900, "runaway_limit": LIMIT, **options})
        ):
            events.append(event)
    return events, caught.value


def text_of(events: list) -> str:
    return "".join(e.text for e in events if isinstance(e, TextDelta))


def samples_of(events: list) -> int:
    return sum(e.pcm.size for e in events if isinstance(e, AudioChunk))


@pytest.fixture
def unharmed(pipeline):
    """The turn after the test is as the turn before it."""
    expected, _ = play(pipeline)
    yield
    again, _ = play(pipeline)
    assert again.token_ids == expected.token_ids
    np.testing.assert_array_equal(again.codes, expected.codes)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("audio_output", [True, False])
def test_the_same_word_over_and_over(pipeline, monkeypatch, unharmed, streaming, audio_output):
    step, calls = pipeline.models.thinker.step, 0

    def stuck(*args):
        nonlocal calls
        calls += 1
        logits = step(*args)
        if calls >= 10:
            logits = np.zeros_like(logits)
            logits[300 if calls % 2 else 301] = 1e4
        return logits

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.models.thinker, "step", stuck)
        events, error = run_away(pipeline, streaming=streaming, audio_output=audio_output)
    assert "the reply does not go on: the last 40 tokens repeat 2" in str(error) and "runaway_limit" in str(error)
    assert error.repeated == LIMIT
    (end,) = [e for e in events if isinstance(e, TextFinished)]
    assert end.reason == "runaway" and end.text == text_of(events)
    assert len(end.token_ids) == 10 + 2 + LIMIT
    assert not any(isinstance(e, Finished) for e in events)


def test_speech_that_goes_round(pipeline, monkeypatch, unharmed):
    step, calls = pipeline.models.voice.talker.step, 0

    def stuck(*args):
        nonlocal calls
        calls += 1
        logits, hidden = step(*args)
        if calls >= 30:
            logits = np.zeros_like(logits)
            logits[calls % 5] = 1e4
        return logits, hidden

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.models.voice.talker, "step", stuck)
        events, error = run_away(pipeline)
    assert "the speech does not go on: 3.2 s of it repeat 0.40 s" in str(error)
    (end,) = [e for e in events if isinstance(e, TextFinished)]
    assert end.reason == "runaway" and end.text == text_of(events) != ""  # the text was still being written
    assert samples_of(events) <= (30 + 5 + LIMIT) * 1920


def test_speech_that_does_not_end(pipeline, unharmed):
    """Random weights never say the last word of a short text: what a wrong engine does."""
    events, error = run_away(pipeline, max_generate_length=4)
    frames = LIMIT + 4 * FRAMES_PER_TOKEN + 1
    assert f"the speech does not end: {frames * 0.08:.1f} s for 4 tokens of text" in str(error)
    (end,) = [e for e in events if isinstance(e, TextFinished)]
    assert end.reason == "length" and end.text == text_of(events) != ""
    assert samples_of(events) < frames * 1920


@pytest.mark.parametrize("level", [0.0, 0.5])
def test_speech_without_sound(pipeline, monkeypatch, unharmed, level):
    engine, calls = pipeline.engines["code2wav"], 0
    run = engine.run

    def mute(inputs, state=None):
        nonlocal calls
        calls += 1
        pcm = run(inputs, state)["pcm"]
        return {"pcm": pcm if calls < 3 else np.full_like(pcm, level)}

    with monkeypatch.context() as patch:
        patch.setattr(engine, "run", mute)
        events, error = run_away(pipeline, max_generate_length=60)
    assert "the speech has no sound" in str(error)
    assert samples_of(events) < (4 + LIMIT + 8) * 1920
    assert text_of(events)


def test_a_cancelled_turn_is_no_runaway(pipeline, unharmed):
    turn = pipeline.generate(Request(HELLO, seed=5, max_generate_length=500, max_audio_length=900, runaway_limit=10**5))
    for event in turn:
        if isinstance(event, AudioChunk):
            pipeline.cancel()
    assert isinstance(event, Finished) and "cancelled" in (event.reason, event.audio_reason)
