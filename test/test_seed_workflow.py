"""TensorRT Edge-LLM's workflow for Qwen3-Omni, command by command as its users type it, on a tiny checkpoint and a CPU.

Quantise, three exports, six builds, four scenarios. Without ModelOpt the quantised checkpoints are laid out by
nvfp4_reference.split, which test_quantize.py holds equal to ModelOpt's.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from calibration_samples import write_samples
from nvfp4_reference import packed, split
from PIL import Image

from offline.checkpoints.checkpoint import Checkpoint

ROOT = Path(__file__).parent.parent
CAN_QUANTIZE = importlib.util.find_spec("accelerate") is not None
QUANTIZE = """
python -m offline.quantize --model_dir $HF --output_dir $QUANT --calibration_dir $SAMPLES --device cpu \\
    --talker_num_audio 1 --talker_num_image 1 --talker_num_text 1 --reply_tokens 3 --codec_frames 3
"""
EXPORT = """
python -m offline.export_onnx $QUANT/thinker $ONNX/thinker
python -m offline.export_onnx --talker-sidecar-from $HF $QUANT/talker $ONNX/talker
python -m offline.export_onnx --components visual,audio,code2wav,code_predictor $HF $ONNX/multimodal
"""
BUILD = """
python -m offline.build_engines --onnxDir $ONNX/thinker/llm --engineDir $ENG/thinker \\
    --maxBatchSize 1 --maxInputLen 1024 --maxKVCacheCapacity 2048
python -m offline.build_engines --onnxDir $ONNX/talker/llm --engineDir $ENG/talker \\
    --maxBatchSize 1 --maxInputLen 512 --maxKVCacheCapacity 1024
python -m offline.build_engines --onnxDir $ONNX/multimodal/code_predictor --engineDir $ENG/code_predictor \\
    --maxBatchSize 1 --maxInputLen 256 --maxKVCacheCapacity 256
python -m offline.build_engines --onnxDir $ONNX/multimodal/code2wav --engineDir $ENG/code2wav --maxCodeLen 1000
python -m offline.build_engines --onnxDir $ONNX/multimodal/audio --engineDir $ENG/multimodal/audio
python -m offline.build_engines --onnxDir $ONNX/multimodal/visual --engineDir $ENG/multimodal/visual
"""
INFER = """
python -m offline.preprocess_audio --input $WORK/question.wav --output $WORK/audio_input.safetensors
for scenario in text audio image; do
    python -m offline.infer --engineDir $ENG/thinker --multimodalEngineDir $ENG/multimodal \\
        --inputFile $WORK/input_$scenario.json --outputFile $WORK/output_$scenario.json
done
python -m offline.infer --engineDir $ENG/thinker --multimodalEngineDir $ENG/multimodal \\
    --talkerEngineDir $ENG/talker --code2wavEngineDir $ENG/code2wav \\
    --inputFile $WORK/input_speech.json --outputFile $WORK/output_speech.json \\
    --outputAudioDir $WORK/audio_output --enableAudioOutput --enableThinkerTalkerStreaming
"""
TEXT, AUDIO, IMAGE = (
    {"type": "text", "text": "What is the capital of France?"},
    {"type": "audio", "audio": "audio_input.safetensors"},
    {"type": "image", "image": "picture.jpg"},
)
SCENARIOS = {"text": [TEXT], "audio": [AUDIO], "image": [IMAGE, TEXT], "speech": [IMAGE, AUDIO, TEXT]}


class Workflow:
    """The shell of a user: variables, and scripts that stop at the first command that fails."""

    def __init__(self, work: Path, hf: Path):
        self.work, self.hf = work, hf
        places = {name.upper(): str(work / name) for name in ("quant", "samples", "onnx", "eng")}
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        self.variables = {"WORK": str(work), "HF": str(hf), "PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(work), **places}

    def __call__(self, script: str) -> str:
        shell = ["bash", "-euo", "pipefail", "-c", script]
        done = subprocess.run(shell, cwd=ROOT, env=self.variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def shell(checkpoints, tmp_path_factory) -> Workflow:
    work = tmp_path_factory.mktemp("workflow")
    write_samples(work / "samples")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (96, 128, 3)).astype(np.uint8)).save(work / "picture.jpg")
    with wave.open(str(work / "question.wav"), "wb") as f:
        f.setparams((1, 2, 16000, 0, "NONE", ""))
        f.writeframes((rng.standard_normal(20000) * 3000).astype("<i2").tobytes())
    for name, content in SCENARIOS.items():
        messages = [{"role": "system", "content": ""}, {"role": "user", "content": content}]
        file = {"batch_size": 1, "temperature": 1.0, "top_p": 0.8, "top_k": 50, "max_generate_length": 8, "max_audio_length": 6}
        (work / f"input_{name}.json").write_text(json.dumps({**file, "requests": [{"messages": messages}]}))
    return Workflow(work, checkpoints["plain"])


@pytest.fixture(scope="module")
def quantised(shell) -> Workflow:
    if CAN_QUANTIZE:
        shell(QUANTIZE)
    else:
        (shell.work / "quant").mkdir()
        split(Checkpoint(shell.hf), shell.work / "quant")
    return shell


@pytest.mark.skipif(not CAN_QUANTIZE, reason="quantize needs accelerate: pip install -e '.[quantize]'")
def test_quantise(quantised):
    for name in ("thinker", "talker"):
        assert len(packed(Checkpoint(quantised.work / "quant" / name))) > 24


def test_three_exports_six_builds_four_scenarios(quantised):
    quantised(EXPORT)
    onnx, engines = quantised.work / "onnx", quantised.work / "eng"
    folders = {str(p.parent.relative_to(onnx)) for p in onnx.rglob("config.json")}
    assert folders == {
        "thinker/llm",
        "talker/llm",
        *(f"multimodal/{n}" for n in ("audio", "visual", "code2wav", "code_predictor")),
    }
    quantised(BUILD)
    assert {str(p.parent.relative_to(engines)) for p in engines.rglob("config.json")} == {
        *("thinker", "talker", "code_predictor", "code2wav", "multimodal/audio", "multimodal/visual")
    }
    limits = {n: json.loads((engines / n / "config.json").read_text())["limits"] for n in ("thinker", "talker", "code2wav")}
    assert limits["thinker"] == {"max_input_len": 1024, "capacity": 2048}
    assert limits["talker"] == {"max_input_len": 512, "capacity": 1024} and limits["code2wav"]["capacity"] == 1000
    quantised(INFER)
    for name in SCENARIOS:
        (reply,) = json.loads((quantised.work / f"output_{name}.json").read_text())["responses"]
        assert reply["request_idx"] == 0 and reply["output_text"] and "error" not in reply
        assert ("audio_file" in reply) == (name == "speech")
    assert Path(reply["audio_file"]) == quantised.work / "audio_output" / "audio_req0_batch0.wav"
    assert reply["audio_samples"] == 1920 * 6 - 555 and reply["audio_sample_rate"] == 24000 and reply["audio_duration_ms"] == 457
    with wave.open(reply["audio_file"]) as f:
        assert f.getnframes() == reply["audio_samples"] and np.frombuffer(f.readframes(9999), np.int16).any()


def test_one_engine_again_leaves_the_others_alone(quantised):
    """Rebuilt with other limits; and a scenario whose engines are gone says which one it wants."""
    engines = quantised.work / "eng"
    if not engines.exists():
        quantised(EXPORT + BUILD)
    before = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in engines.rglob("*") if p.is_file()}
    quantised(BUILD.split("python -m offline.build_engines --onnxDir $ONNX/multimodal/code_predictor")[0].replace("1024", "768"))
    after = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in engines.rglob("*") if p.is_file()}
    changed = {p.relative_to(engines).parts[0] for p in after if before.get(p) != after[p]}
    assert changed == {"thinker", "talker"} and before.keys() == after.keys()
    shutil.rmtree(engines / "code_predictor")
    with pytest.raises(AssertionError, match="code_predictor engine"):
        quantised(INFER.split("done\n")[1])
