"""Stages run side by side, stop when told, survive failures, and never change what is said."""

import gc
import threading
import time
import weakref

import numpy as np
import pytest
from conftest import BACKENDS

from omni_ros.errors import EngineError, OmniError
from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.request import AudioChunk, Finished, Request, TextDelta, TextFinished
from omni_ros.pipeline.streaming import TOKEN_LEAD, Turn

HELLO = [{"role": "user", "content": "what do you see and hear"}]
SAMPLED = {"seed": 5, "max_generate_length": 24, "max_audio_length": 60}


@pytest.fixture(params=BACKENDS)
def pipeline(open_pipeline, request):
    return open_pipeline("plain", request.param)


def play(pipeline: Pipeline, **options) -> tuple[Finished, list]:
    events = list(pipeline.generate(Request(HELLO, **{**SAMPLED, **options})))
    return events[-1], events[:-1]


def slow_down(monkeypatch, owner, method: str, seconds: float) -> None:
    original = getattr(owner, method)

    def slowed(*args, **kwargs):
        time.sleep(seconds)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, method, slowed)


def test_speech_starts_while_the_thinker_is_writing(pipeline, monkeypatch):
    slow_down(monkeypatch, pipeline.models.thinker, "step", 0.05)
    finished, events = play(pipeline)
    kinds = [type(e) for e in events]
    assert kinds.count(TextFinished) == 1 and events[kinds.index(TextFinished)].text == finished.text
    assert kinds.index(AudioChunk) < len(kinds) - 1 - kinds[::-1].index(TextDelta)


@pytest.mark.parametrize("slow", ["thinker", "talker", "code2wav"])
def test_timing_does_not_change_the_reply(pipeline, monkeypatch, slow):
    expected, _ = play(pipeline)
    stage, method = {
        "thinker": (pipeline.models.thinker, "step"),
        "talker": (pipeline.models.voice.talker, "step"),
        "code2wav": (pipeline.models.voice.code2wav, "decode"),
    }[slow]
    slow_down(monkeypatch, stage, method, 0.01)
    for streaming in (True, False):
        finished, _ = play(pipeline, streaming=streaming)
        assert finished.token_ids == expected.token_ids
        np.testing.assert_array_equal(finished.codes, expected.codes)


def test_seeds(pipeline):
    first, again, other = (play(pipeline, seed=s)[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(first.codes, again.codes)
    assert first.token_ids == again.token_ids != other.token_ids


def test_chunks_start_small_and_grow(pipeline, monkeypatch):
    model = pipeline.models.voice.code2wav
    # everything is there before Code2Wav starts, so chunk sizes are what was asked for and nothing else
    original = Turn.vocode
    monkeypatch.setattr(Turn, "vocode", lambda turn: (time.sleep(0.5), original(turn)))
    finished, events = play(pipeline, first_chunk_frames=2, chunk_frames=12)
    frames = finished.codes.shape[1]
    sizes = [len(e.pcm) for e in events if isinstance(e, AudioChunk)]
    expected, sizes_asked = [], [2, 2, 4, 4, 8, 8, *[12] * 20]
    while sum(expected) < frames:
        expected.append(min(sizes_asked.pop(0), frames - sum(expected)))
    samples = [n * model.samples_per_frame for n in expected]
    samples[0] -= model.lookahead_samples
    assert sizes == samples + [0]


def test_cancel_stops_within_a_step_and_the_next_turn_is_unharmed(pipeline):
    expected, _ = play(pipeline)
    for wait_for in (TextDelta, AudioChunk):
        seen, finished = 0, None
        for event in pipeline.generate(Request(HELLO, seed=5, max_generate_length=500, max_audio_length=900)):
            seen += isinstance(event, wait_for)
            if seen == 3:
                pipeline.cancel()
            finished = event
        assert isinstance(finished, Finished)
        assert "cancelled" in (finished.reason, finished.audio_reason)
        assert finished.codes.shape[1] < 900
    again, _ = play(pipeline)
    np.testing.assert_array_equal(again.codes, expected.codes)


def test_cancel_from_another_thread_while_nobody_reads(pipeline):
    """The event backlog is full and every stage waits for the reader: cancel must still get through."""
    turn = pipeline.generate(Request(HELLO, seed=5, max_generate_length=900, max_audio_length=900))
    next(turn)
    time.sleep(0.3)
    threading.Timer(0.05, pipeline.cancel).start()
    time.sleep(0.2)
    *_, finished = turn
    assert finished.reason == "cancelled"


def test_leaving_the_iterator_ends_the_turn(pipeline):
    expected, _ = play(pipeline)
    for event in pipeline.generate(Request(HELLO, seed=5, max_generate_length=500)):
        if isinstance(event, AudioChunk):
            break
    del event
    again, _ = play(pipeline)
    assert again.token_ids == expected.token_ids
    assert not [t for t in threading.enumerate() if t.name in ("think", "talk", "vocode", "turn")]


def test_one_turn_at_a_time(pipeline):
    turn = pipeline.generate(Request(HELLO, **SAMPLED))
    next(turn)
    with pytest.raises(OmniError, match="a turn is running"):
        next(pipeline.generate(Request(HELLO, **SAMPLED)))
    turn.close()
    assert play(pipeline)[0].reason in ("stop", "length")


def test_a_closed_pipeline_says_so(engine_dirs):
    closed = Pipeline.open(engine_dirs["plain"], threads=1)
    closed.close()
    with pytest.raises(OmniError, match="closed"):
        next(closed.generate(Request(HELLO)))


def test_close_frees_the_engines_after_a_failed_turn(engine_dirs, monkeypatch):
    """Although the error is still at hand, and with it every frame that it passed through."""
    opened = Pipeline.open(engine_dirs["plain"], threads=1)
    sessions = [weakref.ref(engine.session) for engine in opened.engines.values()]
    engine = opened.engines["talker"]

    def fail(inputs, state=None):
        raise EngineError("the device fell off the bus")

    engine.run = fail
    with pytest.raises(EngineError) as caught:
        play(opened)
    opened.close()
    gc.collect()
    assert caught.value is not None and [s() for s in sessions] == [None] * 6
    with pytest.raises(EngineError, match="closed"):
        del engine.run
        engine.run({"inputs_embeds": np.zeros((1, 64), np.float32), "position_ids": np.zeros((3, 1), np.float32)})


def test_samples_that_are_no_numbers_end_the_turn(pipeline, monkeypatch):
    expected, _ = play(pipeline)
    engine = pipeline.engines["code2wav"]
    run = engine.run

    def damaged(inputs, state=None):
        return {"pcm": run(inputs, state)["pcm"] * np.float32("nan")}

    with monkeypatch.context() as patch:
        patch.setattr(engine, "run", damaged)
        with pytest.raises(EngineError, match="no numbers"):
            play(pipeline)
    np.testing.assert_array_equal(play(pipeline)[0].codes, expected.codes)


@pytest.mark.parametrize("stage", ["thinker", "talker", "code_predictor", "code2wav"])
def test_a_failing_stage_raises_once_and_the_next_turn_works(pipeline, monkeypatch, stage):
    expected, _ = play(pipeline)
    engine, calls = pipeline.engines[stage], 0
    original = engine.run

    def fail_later(inputs, state=None):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise EngineError("the device fell off the bus")
        return original(inputs, state)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "run", fail_later)
        with pytest.raises(EngineError, match="fell off the bus"):
            play(pipeline)
    again, _ = play(pipeline)
    assert again.token_ids == expected.token_ids
    np.testing.assert_array_equal(again.codes, expected.codes)


def test_the_thinker_does_not_run_away_from_the_talker(pipeline, monkeypatch):
    """While speech is slow, only a few tokens are written ahead of it; when it ends first, the text goes on to its end."""
    slow_down(monkeypatch, pipeline.models.voice.talker, "step", 0.02)
    steps, leads = {"thinker": 0, "talker": 0}, []
    for stage, engine in (("thinker", pipeline.models.thinker), ("talker", pipeline.models.voice.talker)):

        def counted(*args, stage=stage, step=engine.step):
            steps[stage] += 1
            if steps["talker"] < 39:
                leads.append(steps["thinker"] - steps["talker"])
            return step(*args)

        monkeypatch.setattr(engine, "step", counted)
    finished, _ = play(pipeline, max_generate_length=100, max_audio_length=40)
    assert len(finished.token_ids) == 100 and finished.codes.shape[1] == 40
    assert 4 <= max(leads) <= TOKEN_LEAD + 3


def test_an_empty_reply_is_a_turn_without_words_and_speech(pipeline, monkeypatch):
    """The Thinker's first token is its last: nothing is spoken, and nothing waits for a word."""
    expected, _ = play(pipeline)
    thinker = pipeline.models.thinker
    read, end = thinker.read, thinker.config.im_end_token_id

    def ends_at_once(*args):
        logits, hidden = read(*args)
        logits = logits.copy()
        logits[end] = 1e4
        return logits, hidden

    with monkeypatch.context() as patch:
        patch.setattr(thinker, "read", ends_at_once)
        for streaming in (True, False):
            finished, events = play(pipeline, streaming=streaming, runaway_limit=10)
            assert (finished.text, finished.token_ids) == ("", [end])
            assert (finished.reason, finished.audio_reason) == ("stop", "none")
            assert finished.codes.shape == (16, 0) and "audio_s" not in finished.metrics
            assert [e for e in events if not isinstance(e, AudioChunk)] == [TextFinished("", [end], "stop")]
            assert [(e.pcm.size, e.is_last) for e in events if isinstance(e, AudioChunk)] == [(0, True)]
    again, _ = play(pipeline)
    np.testing.assert_array_equal(again.codes, expected.codes)


def test_text_only_turn_runs_no_speech(pipeline, monkeypatch):
    monkeypatch.setattr(pipeline.engines["talker"], "run", None)
    finished, events = play(pipeline, audio_output=False)
    assert finished.audio_reason == "none" and finished.codes.shape == (16, 0)
    assert all(isinstance(e, TextDelta) for e in events[:-1])
    assert events[-1] == TextFinished(finished.text, finished.token_ids, finished.reason)


def test_metrics_are_ordered_in_time(pipeline):
    m = play(pipeline)[0].metrics
    order = ["inputs_s", "prefill_s", "first_token_s", "first_code_s", "first_pcm_s", "last_pcm_s", "total_s"]
    assert [m[k] for k in order] == sorted(m[k] for k in order)
    assert m["frames"] == 60 and m["audio_samples"] == 60 * 1920 - 555 and m["tokens_per_s"] > 0 and m["rtf"] > 0
