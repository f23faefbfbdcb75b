"""Same checkpoint, same turn: our tokens, codes and waveform are those of transformers (greedy, float32)."""

import numpy as np
import oracle
import pytest
from conftest import BACKENDS
from transformers import Qwen2VLImageProcessorPil

from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.request import AudioChunk, Finished, Request, TextDelta

GREEDY = {"temperature": 0, "talker_temperature": 0}


def tone(seconds: float, seed: int) -> np.ndarray:
    """A chirp in noise, float32 [n] at 16 kHz."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(16000 * seconds)) / 16000
    return (0.2 * np.sin(2 * np.pi * (200 + 150 * t) * t) + 0.02 * rng.standard_normal(len(t))).astype(np.float32)


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """Smooth colours plus noise, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 150, height)[:, None, None] + np.linspace(0, 60, width)[None, :, None] * rng.random(3)
    return (ramp + rng.integers(0, 40, (height, width, 3))).clip(0, 255).astype(np.uint8)


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def audio(seconds: float, seed: int = 0) -> dict:
    return {"type": "audio", "audio": tone(seconds, seed)}


def image(height: int, width: int, seed: int = 0) -> dict:
    return {"type": "image", "image": picture(height, width, seed)}


def video(frames: int, height: int, width: int, fps: float) -> dict:
    return {"type": "video", "video": np.stack([picture(height, width, i) for i in range(frames)]), "fps": fps}


def user(*parts: dict) -> dict:
    return {"role": "user", "content": list(parts)}


def says(role: str, words: str) -> dict:
    return {"role": role, "content": [text(words)]}


# Video frames already have a size the encoder takes: where transformers must resize them, its torch bicubic and our
# Pillow bicubic round pixels differently (test_preprocess_video.py bounds that).
TURNS = {
    "text": [user(text("what do you see and hear"))],
    "system and text": [says("system", "hello world"), user(text("please describe"))],
    "image of odd size": [user(image(97, 131), text("what is this"))],
    "three images": [user(image(64, 64), text("and"), image(50, 210, 1), image(33, 40, 2), text("compare"))],
    "audio": [user(audio(2.3), text("what do you hear"))],
    "audio of 0.4 s": [user(audio(0.4))],
    "audio of 9.7 s": [user(text("listen"), audio(9.7))],
    "three audios": [user(audio(1.0), audio(8.6, 1), text("and"), audio(0.7, 2))],
    "audio and image": [user(audio(1.7), image(70, 90), text("what is it"))],
    "everything": [
        says("system", "hello"),
        user(image(64, 96), audio(1.2), video(2, 352, 384, 2.0), text("so"), image(40, 64, 3)),
    ],
    "video at 2 fps": [user(video(6, 352, 384, 2.0), text("what happens"))],
    "video at 3 fps": [user(video(4, 384, 352, 3.0), text("what happens"))],  # positions that are not whole numbers
    "three turns": [
        says("system", "hello world"),
        user(image(64, 80), text("what is this")),
        says("assistant", "hello"),
        user(audio(1.1), text("and this")),
        says("assistant", "do you hear"),
        user(text("please describe")),
    ],
}
TENSORRT_TURNS = ("text", "audio of 9.7 s", "everything", "three turns")  # each engine, every kind of run it has


@pytest.fixture
def pipeline(name, open_pipeline):
    return open_pipeline(name, "onnxruntime")


@pytest.fixture(scope="module")
def reference(name, checkpoints):
    model = oracle.load(checkpoints[name])
    # transformers' torchvision processor differs from its own Pillow one by a rounding of single pixels; ours is Pillow's
    model.processor.image_processor = Qwen2VLImageProcessorPil.from_pretrained(checkpoints[name])
    return model


def play(pipeline: Pipeline, request: Request) -> tuple[Finished, np.ndarray, str]:
    """Runs a turn; returns its end, its samples, and the text as it was streamed."""
    events = list(pipeline.generate(request))
    chunks = [e for e in events if isinstance(e, AudioChunk)]
    assert [c.is_last for c in chunks] == [False] * (len(chunks) - 1) + [True]
    return events[-1], np.concatenate([c.pcm for c in chunks]), "".join(e.text for e in events if isinstance(e, TextDelta))


def fps_of(messages: list[dict]) -> float | None:
    parts = [p for m in messages if not isinstance(m["content"], str) for p in m["content"]]
    return next((p["fps"] for p in parts if p["type"] == "video"), None)


@pytest.mark.parametrize(
    "turn, backend",
    [(turn, backend) for backend in BACKENDS for turn in TURNS if backend == "onnxruntime" or turn in TENSORRT_TURNS],
)
def test_turn_equals_transformers(name, open_pipeline, reference, turn, backend):
    messages, pipeline = TURNS[turn], open_pipeline(name, backend)
    expected = reference.generate(messages, max_generate_length=12, max_audio_length=20, fps=fps_of(messages))
    for streaming in (True, False):
        finished, pcm, streamed = play(
            pipeline, Request(messages, max_generate_length=12, max_audio_length=20, streaming=streaming, **GREEDY)
        )
        assert finished.token_ids == expected.token_ids
        assert streamed == finished.text == reference.processor.tokenizer.decode(expected.token_ids, skip_special_tokens=True)
        np.testing.assert_array_equal(finished.codes, expected.codes)
        assert pcm.shape == expected.waveform.shape
        np.testing.assert_allclose(pcm, expected.waveform, atol=1e-3)


def test_repetition_penalty_equals_transformers(pipeline, reference):
    messages = TURNS["text"]
    expected = reference.generate(messages, max_generate_length=6, max_audio_length=40, repetition_penalty=1.3)
    finished, _, _ = play(
        pipeline, Request(messages, max_generate_length=6, max_audio_length=40, repetition_penalty=1.3, **GREEDY)
    )
    np.testing.assert_array_equal(finished.codes, expected.codes)


def test_speakers_equal_transformers(pipeline, reference):
    messages, heard = TURNS["text"], set()
    for speaker in pipeline.models.speak().talker.config.speaker_id:
        expected = reference.generate(messages, max_generate_length=4, max_audio_length=8, speaker=speaker)
        finished, _, _ = play(
            pipeline, Request(messages, max_generate_length=4, max_audio_length=8, speaker=speaker.title(), **GREEDY)
        )
        np.testing.assert_array_equal(finished.codes, expected.codes)
        heard.add(finished.codes.tobytes())
    assert len(heard) == len(pipeline.models.speak().talker.config.speaker_id)


def test_reply_that_ends_by_itself(pipeline, reference):
    """Declare a token that the reply contains to be the end token: the Talker must then speak only what is before it."""
    messages = TURNS["text"]
    free = reference.generate(messages, max_generate_length=12, audio_output=False).token_ids
    end = next(t for i, t in enumerate(free) if i >= 2 and t not in free[:i])
    original = reference.model.config.im_end_token_id
    reference.model.config.im_end_token_id = end
    pipeline.models.thinker.config.im_end_token_id = end
    try:
        # the im_end of the prompt itself keeps its id: only generation is told of the new end
        expected = reference.generate(messages, max_generate_length=12, max_audio_length=20)
        finished, _, _ = play(pipeline, Request(messages, max_generate_length=12, max_audio_length=20, **GREEDY))
    finally:
        reference.model.config.im_end_token_id = original
        pipeline.models.thinker.config.im_end_token_id = original
    assert finished.reason == "stop"
    assert finished.token_ids == expected.token_ids == free[: free.index(end) + 1]
    np.testing.assert_array_equal(finished.codes, expected.codes)
