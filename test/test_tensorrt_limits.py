"""The pipeline never gives an engine shapes that its TensorRT profiles leave out; such requests fail before, by name.

Checked on ONNX Runtime engines with the limits that TensorRT engines have, against the profiles that would be built.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline.build_engines import build_tree
from offline.export_onnx import COMPONENTS, export
from offline.quantization.spy import Call, spy
from offline.tensorrt import build as build_tensorrt
from omni_ros.errors import InputError, PromptTooLongError
from omni_ros.pipeline.pipeline import ENGINES, Pipeline
from omni_ros.pipeline.request import Finished, Request

MAX_INPUT_LEN, MAX_RUN_FRAMES = 800, 5
rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def pipeline(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    root = tmp_path_factory.mktemp("limits")
    export(checkpoints["plain"], root / "onnx", list(COMPONENTS), np.dtype(np.float32))
    decoder = {"max_input_len": MAX_INPUT_LEN, "capacity": 900}
    build_tree(root / "onnx", root, limits={"thinker": decoder, "talker": decoder, "code2wav": {"capacity": 64}})
    for name, limits in {"code2wav": {"max_run_frames": MAX_RUN_FRAMES}, "multimodal/visual": {"max_frames": 1}}.items():
        config = json.loads((root / name / "config.json").read_text())
        config["limits"].update(limits)
        (root / name / "config.json").write_text(json.dumps(config))
    opened = Pipeline.open(root, threads=1)
    for name in ("thinker", "talker"):
        opened.engines[name].max_rows = MAX_INPUT_LEN  # TensorRT takes a prompt in one run
    yield opened
    opened.close()


def turn(pipeline: Pipeline, parts: list[dict[str, Any]], **options) -> tuple[list[Call], Finished]:
    request = Request(
        [{"role": "user", "content": [*parts, {"type": "text", "text": "so"}]}],
        **{"temperature": 0, "talker_temperature": 0, "max_generate_length": 3, "max_audio_length": 4, **options},
    )
    with spy(pipeline) as calls:
        return calls, list(pipeline.generate(request))[-1]


def config_of(pipeline: Pipeline, engine: str) -> dict[str, Any]:
    return json.loads((pipeline.engines[engine].directory / "config.json").read_text())


def fits(call: Call, config: dict[str, Any]) -> bool:
    """Whether one of the engine's profiles has all shapes of the call within its bounds."""
    return any(
        all(
            len(low) == call.inputs[name].ndim
            and (np.array(low) <= call.inputs[name].shape).all()
            and (call.inputs[name].shape <= np.array(high)).all()
            for name, (low, _, high) in shapes.items()
        )
        for shapes in build_tensorrt.profiles(config).values()
    )


def sound(samples: int) -> dict[str, Any]:
    return {"type": "audio", "audio": rng.standard_normal(samples).astype(np.float32)}


def picture(height: int, width: int) -> dict[str, Any]:
    return {"type": "image", "image": rng.integers(0, 256, (height, width, 3), np.uint8)}


VIDEO = {"type": "video", "video": rng.integers(0, 256, (6, 64, 96, 3), np.uint8)}


@pytest.mark.parametrize(
    "parts",
    [
        [sound(201)],
        [sound(15999)],
        [sound(16000 * 8)],
        [sound(16000 * 8 + 1)],  # a window of the audio encoder is 8 s
        [sound(500), sound(30000), sound(16001)],
        [picture(32, 32)],
        [picture(120, 90), picture(64, 200)],
        [VIDEO],
        [VIDEO, picture(64, 96), sound(20000)],
    ],
    ids=range(9),
)
def test_media_of_any_size(pipeline, parts):
    calls, _ = turn(pipeline, parts)
    assert {c.engine for c in calls} >= {"thinker", "talker", "code_predictor", "code2wav"}
    for call in calls:
        assert fits(call, config_of(pipeline, call.engine)), (call.engine, {k: v.shape for k, v in call.inputs.items()})


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("chunk", [1, 8, 40])
def test_speech_of_any_chunk_size(pipeline, streaming, chunk):
    calls, finished = turn(pipeline, [], streaming=streaming, chunk_frames=chunk, first_chunk_frames=1, max_audio_length=33)
    runs = [c for c in calls if c.engine == "code2wav"]
    assert sum(c.inputs["codes"].shape[1] for c in runs) == finished.codes.shape[1] == 33
    assert all(fits(c, config_of(pipeline, "code2wav")) for c in runs)
    if not streaming:
        assert [c.inputs["codes"].shape[1] for c in runs] == [5] * 6 + [3]


def test_the_check_itself_sees_what_is_too_large(pipeline):
    config = config_of(pipeline, "code2wav")
    call = lambda frames: Call("code2wav", 0, 0, {"codes": np.zeros((16, frames), np.int64)}, {})  # noqa: E731
    assert fits(call(MAX_RUN_FRAMES), config) and not fits(call(MAX_RUN_FRAMES + 1), config) and not fits(call(0), config)


@pytest.mark.parametrize(
    ("parts", "error", "words"),
    [
        ([picture(256, 256)], InputError, "256 patches.*255.*smaller image"),
        ([sound(16000 * 70)], PromptTooLongError, f"{MAX_INPUT_LEN}.*--maxInputLen"),
        ([{"type": "text", "text": "y" * 2000}], PromptTooLongError, f"{MAX_INPUT_LEN}.*--maxInputLen"),
    ],
    ids=["picture", "sound", "text"],
)
def test_what_no_profile_takes_fails_before_the_engine(pipeline, monkeypatch, parts, error, words):
    monkeypatch.setattr(pipeline.models.media.visual, "max_patches", 255)
    with spy(pipeline) as calls, pytest.raises(error, match=words):
        list(pipeline.generate(Request([{"role": "user", "content": parts}])))
    assert not calls


def test_longest_prompt_of_thinker_and_talker(pipeline):
    """One more row is an error, not a run: the profiles end at --maxInputLen (or 128, if that is more)."""
    engines = {name: config_of(pipeline, name) for name in ENGINES}
    longest = {"thinker": 0, "talker": 0}
    for letters in range(760, 800):
        try:
            calls, _ = turn(pipeline, [{"type": "text", "text": "y" * letters}])
        except PromptTooLongError:
            continue
        for call in calls:
            assert fits(call, engines[call.engine])
            if call.engine in longest:
                longest[call.engine] = max(longest[call.engine], len(call.inputs["inputs_embeds"]))
    assert max(longest.values()) == MAX_INPUT_LEN
