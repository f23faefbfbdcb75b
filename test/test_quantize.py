"""offline.quantize: what ModelOpt writes for tiny checkpoints, read back by us and by ModelOpt, and what is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
import torchvision_shim  # noqa: F401  (before transformers)
from calibration_samples import write_samples
from conftest import ROOT, run
from nvfp4_reference import CODE_PREDICTOR, decoded, exported_linears, packed, read
from transformers import AutoTokenizer
from transformers.models.qwen3_omni_moe import Qwen3OmniMoeTalkerConfig, Qwen3OmniMoeTextConfig

from offline import quantize
from offline.checkpoints.checkpoint import Checkpoint, write_safetensors
from offline.quantization import checkpoints as checkpoints_module
from offline.quantization import encode as torch_encode
from offline.quantization import export, placement
from offline.quantization import thinker as calibrated_thinker
from offline.quantization.calibration import Sample, find_samples
from offline.quantization.checkpoints import Settings, quantised
from offline.quantization.nvfp4 import BLOCK, decode, encode
from offline.quantization.selection import input_sizes, select
from offline.quantization.turns import Turn, batches
from omni_ros.errors import CheckpointError
from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.request import Request

pytest.importorskip("modelopt", reason="needs the `quantize` extra")
import modelopt_reference  # noqa: E402
from modelopt.torch.export import unified_export_hf  # noqa: E402
from modelopt.torch.quantization import tensor_quant  # noqa: E402
from modelopt.torch.quantization.nn.modules import tensor_quantizer  # noqa: E402
from modelopt.torch.quantization.qtensor import NVFP4QTensor  # noqa: E402

COUNTS = {"audio": 1, "image": 1, "text": 1}
SHORT = {"reply_tokens": 3, "codec_frames": 3}
OPTIONAL = [
    "thinker.lm_head",
    "talker.codec_head",
    "talker.code_predictor.*",
    "talker.model.layers.*.self_attn.*",
    "talker.model.layers.*.mlp.shared_expert*",
]  # all that may be NVFP4 and by default is not
SCALES = ("weight_scale", "weight_scale_2", "input_scale")


@pytest.fixture(scope="module")
def samples_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_samples(tmp_path_factory.mktemp("calibration") / "samples")


@pytest.fixture(scope="module")
def samples(samples_dir: Path) -> list[Sample]:
    return find_samples(samples_dir, COUNTS)[0]


@pytest.fixture(scope="module")
def root(checkpoints: dict[str, Path]) -> Checkpoint:
    return Checkpoint(checkpoints["plain"])


@pytest.fixture(scope="module")
def out(root: Checkpoint, samples_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by the command line, in a process of its own."""
    out = tmp_path_factory.mktemp("quantised") / "out"
    counts = [word for kind, n in COUNTS.items() for word in (f"--talker_num_{kind}", n)]
    lengths = [word for name, n in SHORT.items() for word in (f"--{name}", n)]
    printed = run(
        "offline.quantize",
        "--model_dir",
        root.directory,
        "--output_dir",
        out,
        "--device",
        "cpu",
        "--calibration_dir",
        samples_dir,
        *counts,
        *lengths,
    )
    assert "1 audio samples instead of 150" in printed and "23 modules in NVFP4" in printed
    return out


@pytest.fixture(scope="module")
def parts(out: Path) -> dict[str, Checkpoint]:
    return {name: Checkpoint(out / name) for name in ("thinker", "talker")}


# ---- what is written ------------------------------------------------------------------------------------------------
def test_four_bits_where_the_design_says_so(parts: dict[str, Checkpoint]) -> None:
    expert = [f"mlp.experts.{e}.{p}_proj" for e in range(8) for p in ("gate", "up", "down")]
    attention = [f"self_attn.{p}_proj" for p in "qkvo"]
    four_bits = {"thinker": (4, expert + attention), "talker": (3, expert)}
    for name, (layers, linears) in four_bits.items():
        assert set(packed(parts[name])) == {f"{name}.model.layers.{i}.{x}" for i in range(layers) for x in linears}


def test_one_folder_with_every_part(out: Path, root: Checkpoint, samples_dir: Path, tmp_path: Path) -> None:
    """--single_folder: the same tensors under the root's names, beside all that was never quantised; exported without flags."""
    counts = [word for kind, n in COUNTS.items() for word in (f"--talker_num_{kind}", n)]
    lengths = [word for name, n in SHORT.items() for word in (f"--{name}", n)]
    options = ["--device", "cpu", "--calibration_dir", samples_dir, "--single_folder", *counts, *lengths]
    run("offline.quantize", "--model_dir", root.directory, "--output_dir", tmp_path / "whole", *options)
    whole, parts = Checkpoint(tmp_path / "whole"), {name: Checkpoint(out / name) for name in ("thinker", "talker")}
    assert whole.config == root.config and sorted(p.name for p in tmp_path.iterdir()) == ["whole"]
    for name in whole.tensors:
        part = parts.get(name.split(".")[0])
        source = part if part is not None and name in part else root
        assert whole.read(name).tobytes() == source.read(name).tobytes(), name
    assert set(packed(whole)) == {*packed(parts["thinker"]), *packed(parts["talker"])}
    report = json.loads((tmp_path / "whole" / "quantization_report.json").read_text())
    assert report["samples"] == COUNTS
    run("offline.export_onnx", tmp_path / "whole", tmp_path / "onnx")
    assert len(list((tmp_path / "onnx").rglob("model.onnx"))) == 6


def test_tensors_decode_to_the_original_weights(parts: dict[str, Checkpoint], root: Checkpoint) -> None:
    for part in parts.values():
        for linear in packed(part):
            weight, scale, scale_2 = read(part, linear)
            original = root.read(f"{linear}.weight").astype(np.float32)
            assert (weight.dtype, weight.shape) == (np.uint8, (original.shape[0], original.shape[1] // 2))
            assert (str(scale.dtype), scale.shape) == ("float8_e4m3fn", (original.shape[0], original.shape[1] // BLOCK))
            assert (scale_2.dtype, scale_2.shape) == (np.float32, ())
            step = np.repeat(scale.astype(np.float32) * scale_2, BLOCK, axis=1)  # the widest gap, 4 to 6, is two
            assert (np.abs(decode(weight, scale, scale_2) - original) <= 1.001 * step).all(), linear
            again = encode(original, scale_2)
            assert (again[0] == weight).all() and (again[1].view(np.uint8) == scale.view(np.uint8)).all(), linear


def test_scales_are_shared_where_inputs_or_kernels_are(parts: dict[str, Checkpoint], root: Checkpoint) -> None:
    def value(name: str) -> float:
        return float(parts[name.split(".")[0]].read(name))

    def largest(*linears: str) -> float:
        return max(float(np.abs(root.read(f"{n}.weight").astype(np.float32)).max()) for n in linears) / (6 * 448)

    for i in range(4):
        q, k, v = (f"thinker.model.layers.{i}.self_attn.{p}_proj" for p in "qkv")
        assert len({value(f"{n}.input_scale") for n in (q, k, v)}) == 1
        scale_2, *others = {value(f"{n}.weight_scale_2") for n in (q, k, v)}
        assert not others and scale_2 == pytest.approx(largest(q, k, v), rel=1e-6)
    for layer in [f"thinker.model.layers.{i}" for i in range(4)] + [f"talker.model.layers.{i}" for i in range(3)]:
        experts = [f"{layer}.mlp.experts.{e}" for e in range(8)]
        for first, second in (("gate", "up"), ("down", "down")):
            assert len({value(f"{e}.{p}_proj.input_scale") for e in experts for p in (first, second)}) == 1
            for e in experts:
                pair = f"{e}.{first}_proj", f"{e}.{second}_proj"
                scale_2, *others = {value(f"{n}.weight_scale_2") for n in pair}
                assert not others and scale_2 == pytest.approx(largest(*pair), rel=1e-6)


def test_all_else_is_copied_bit_for_bit(parts: dict[str, Checkpoint], root: Checkpoint) -> None:
    text = ("thinker.model.", "thinker.lm_head.")
    expected = {
        "thinker": [n for n in root.tensors if n.startswith(text)],
        "talker": [n for n in root.tensors if n.startswith("talker.")],
    }
    for name, part in parts.items():
        four_bits = packed(part)
        assert set(part.tensors) == set(expected[name]) | {f"{n}.{s}" for n in four_bits for s in SCALES}
        for tensor in set(expected[name]) - {f"{n}.weight" for n in four_bits}:
            assert part.info(tensor).dtype == root.info(tensor).dtype
            assert part.read(tensor).tobytes() == root.read(tensor).tobytes(), tensor


def test_folders_stand_alone(out: Path, root: Checkpoint) -> None:
    for name, model_type, config_class in (
        ("thinker", "qwen3_omni_moe_text", Qwen3OmniMoeTextConfig),
        ("talker", "qwen3_omni_moe_talker", Qwen3OmniMoeTalkerConfig),
    ):
        config = json.loads((out / name / "config.json").read_text())
        assert config["model_type"] == model_type and config["omni_config"] == root.config
        assert config["quantization_config"]["quant_method"] == "modelopt"
        loaded = config_class.from_pretrained(out / name)
        assert getattr(loaded, "text_config", loaded).num_hidden_layers == {"thinker": 4, "talker": 3}[name]
        quant = json.loads((out / name / "hf_quant_config.json").read_text())
        assert quant["producer"]["name"] == "modelopt" and quant["quantization"]["quant_algo"] == "NVFP4"
        assert quant["quantization"]["group_size"] == BLOCK
        kept = quant["quantization"]["exclude_modules"]
        assert ("lm_head" if name == "thinker" else "codec_head") in kept
    assert "audio_config" not in json.loads((out / "talker" / "config.json").read_text())
    assert AutoTokenizer.from_pretrained(out / "thinker").encode("user") == [root.config["user_token_id"]]
    for file in ("chat_template.jinja", "processor_config.json"):
        assert (out / "thinker" / file).read_bytes() == (root.directory / file).read_bytes()


def test_modelopt_decodes_the_same(parts: dict[str, Checkpoint]) -> None:
    for part in parts.values():
        for linear in packed(part)[::7]:
            weight, scale, scale_2 = read(part, linear)
            stored = NVFP4QTensor((weight.shape[0], 2 * weight.shape[1]), torch.float32, torch.from_numpy(weight))
            theirs = stored.dequantize(
                scale=torch.from_numpy(scale.view(np.uint8)).view(torch.float8_e4m3fn),
                block_sizes={-1: BLOCK},
                double_scale=torch.tensor(float(scale_2)),
            )
            np.testing.assert_array_equal(decode(weight, scale, scale_2), theirs.numpy())


def test_report(out: Path, parts: dict[str, Checkpoint]) -> None:
    report = json.loads((out / "quantization_report.json").read_text())
    assert report["samples"] == COUNTS and len(report["warnings"]) == 3 and report["device"] == "cpu"
    for linear in packed(parts["thinker"]) + packed(parts["talker"]):
        owner, _, expert = linear.partition(".mlp.experts")
        fused = "down_proj_" if linear.endswith("down_proj") else "gate_up_proj_"
        ranges = report["ranges"][f"{owner}.mlp.experts" if expert else owner]
        part = parts[linear.split(".")[0]]
        kind = fused if expert else ""
        assert float(part.read(f"{linear}.input_scale")) * 6 * 448 == pytest.approx(ranges[f"{kind}input_quantizer"])
        assert float(part.read(f"{linear}.weight_scale_2")) * 6 * 448 <= ranges[f"{kind}weight_quantizer"] * 1.5
    rows = report["expert_rows"]
    assert len(rows) == 7 and all(len(n) == 8 for n in rows.values())
    assert len({sum(n) for layer, n in rows.items() if layer.startswith("thinker")}) == 1  # all layers see all rows
    assert report["experts_never_reached"] == {
        layer: [e for e, n in enumerate(counts) if n == 0] for layer, counts in rows.items() if 0 in counts
    }


def quantize_to(place: Path, root: Checkpoint, samples: list[Sample], include: list[str], exclude: list[str]) -> dict:
    settings = Settings(include=tuple(include), exclude=tuple(exclude), **SHORT)
    with quantised(root, samples, place / "quantised", "cpu", settings) as (folder, report):
        for part in ("thinker", "talker"):
            shutil.move(folder / part, place / part)
    return report


# ---- again, in this process -----------------------------------------------------------------------------------------
def test_same_arguments_same_bytes(root: Checkpoint, samples: list[Sample], out: Path, tmp_path: Path) -> None:
    with quantised(root, samples, tmp_path / "again", "cpu", Settings(**SHORT)) as (folder, _):
        assert_same_files(folder, out)


def assert_same_files(folder: Path, out: Path) -> None:
    for name in ("thinker", "talker"):
        assert {p.name for p in (folder / name).iterdir()} == {p.name for p in (out / name).iterdir()}
        for file in (folder / name).iterdir():
            assert file.read_bytes() == (out / name / file.name).read_bytes(), file


def test_a_run_that_was_stopped_goes_on(
    root: Checkpoint, samples_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the Thinker's second batch and again in the middle of writing: the same bytes, and no batch is shown twice."""
    samples = find_samples(samples_dir, {"audio": 2, "image": 1, "text": 2})[0]
    monkeypatch.setattr(checkpoints_module, "BATCH_ROWS", 60)
    with quantised(root, samples, tmp_path / "whole", "cpu", Settings(**SHORT)) as (folder, report):
        shutil.copytree(folder, tmp_path / "expected")
    shown: list[list[int]] = []
    answer, write = calibrated_thinker.Thinker.answer, export.Exporter._write_shard

    def stop_at(call, count):
        left = [count]

        def stopping(self, *args):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            if call is answer:
                shown.append([turn.number for turn in args[0]])
            return call(self, *args)

        return stopping

    def go() -> dict:
        with quantised(root, samples, tmp_path / "out", "cpu", Settings(**SHORT)) as (folder, found):
            assert_same_files(folder, tmp_path / "expected")
        return found

    monkeypatch.setattr(calibrated_thinker.Thinker, "answer", stop_at(answer, 1))
    with pytest.raises(KeyboardInterrupt):
        go()
    monkeypatch.setattr(calibrated_thinker.Thinker, "answer", stop_at(answer, 9))
    monkeypatch.setattr(export.Exporter, "_write_shard", stop_at(write, 2))
    with pytest.raises(KeyboardInterrupt):
        go()
    monkeypatch.setattr(export.Exporter, "_write_shard", write)
    assert [p.suffix for p in tmp_path.glob(".out.*")] == [".resume"]
    assert go() == report
    assert len(shown) > 2 and sorted(sum(shown, [])) == list(range(len(samples)))
    assert not list(tmp_path.glob(".*"))  # nothing is left behind


def test_layers_without_room_are_read_for_every_step(
    root: Checkpoint, samples: list[Sample], out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that holds two layers and a half: the same bytes as with room for all."""
    rest = root.nbytes("thinker.") - root.nbytes("thinker.model.layers.")
    layer, read = root.nbytes("thinker.model.layers.0."), []
    monkeypatch.setattr(placement, "free_bytes", lambda device: rest + int(2.5 * layer))
    fill = placement.Placement._read

    def reading(self, module, prefix, device):
        read.append(prefix)
        return fill(self, module, prefix, device)

    monkeypatch.setattr(placement.Placement, "_read", reading)
    with quantised(root, samples, tmp_path / "again", "cpu", Settings(**SHORT)) as (folder, _):
        assert_same_files(folder, out)
    counts = {i: read.count(f"thinker.model.layers.{i}") for i in range(4)}
    assert counts[0] == 1 and counts[1] > 2 and counts[3] == counts[1]


def test_layers_are_spread_over_devices_in_order(
    root: Checkpoint, samples: list[Sample], out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two devices (torch numbers CPUs, and they are one): the first takes what is no layer and two layers, the second the
    others; the same bytes. That rows go from one GPU to another needs two GPUs to be seen."""
    devices = [torch.device("cpu", 0), torch.device("cpu", 1)]
    rest = root.nbytes("thinker.") - root.nbytes("thinker.model.layers.")
    layer, put = root.nbytes("thinker.model.layers.0."), {}
    room = {devices[0]: rest + int(2.5 * layer), devices[1]: 10**9}
    monkeypatch.setattr(checkpoints_module, "devices_of", lambda device: devices)
    monkeypatch.setattr(placement, "free_bytes", room.get)
    fill = placement.Placement._fill

    def filling(self, module, prefix, device):
        put[prefix] = device
        fill(self, module, prefix, device)

    monkeypatch.setattr(placement.Placement, "_fill", filling)
    with quantised(root, samples, tmp_path / "again", "cpu", Settings(**SHORT)) as (folder, _):
        assert_same_files(folder, out)
    assert [put[f"thinker.model.layers.{i}"].index for i in range(4)] == [0, 0, 1, 1]
    assert put["thinker.model"] == put["thinker.visual"] == devices[0]


def float32(root: Checkpoint, directory: Path) -> Checkpoint:
    """The same values in float32: then nothing rounds differently for rows that are computed side by side."""
    directory.mkdir()
    for file in root.directory.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, directory)
    values = {name: root.read(name).astype(np.float32) for name in root.tensors}
    write_safetensors(directory / "model.safetensors", {n: (v.dtype, v.shape, [v]) for n, v in values.items()})
    (directory / "model.safetensors.index.json").unlink(missing_ok=True)
    return Checkpoint(directory)


@pytest.mark.parametrize("name", ["plain", "published"])
def test_ranges_and_tensors_are_those_of_modelopt(
    name: str, checkpoints: dict[str, Path], samples_dir: Path, tmp_path: Path
) -> None:
    """Batches and grouped experts against ModelOpt's way: sample by sample, expert by expert, and its own exporter."""
    root = float32(Checkpoint(checkpoints[name]), tmp_path / "root")
    samples = find_samples(samples_dir, {"audio": 2, "image": 2, "text": 2})[0]
    chosen = select(input_sizes(root), OPTIONAL, [])
    reference = modelopt_reference.Reference(root)
    expected = reference.calibrate(chosen, samples, **SHORT)
    settings = Settings(include=tuple(OPTIONAL), greedy=True, **SHORT)
    with quantised(root, samples, tmp_path / "out", "cpu", settings) as (folder, report):
        found = {
            f"{module}.{kind.removesuffix('input_quantizer').rstrip('_')}".rstrip("."): value
            for module, kinds in report["ranges"].items()
            for kind, value in kinds.items()
            if kind.endswith("input_quantizer")
        }
        assert found == pytest.approx(expected, rel=1e-5)
        for part, theirs in reference.export(tmp_path / "modelopt").items():
            ours = Checkpoint(folder / part)
            assert set(ours.tensors) == set(theirs.tensors)
            for tensor in ours.tensors:
                # These two ModelOpt cannot do right: its dry run of the Talker reaches no CodePredictor, and it gives one
                # scale to all that read the same row, also to the shared expert's gate, which is a product of its own.
                if tensor.endswith("weight_scale_2") or "code_predictor" in tensor or "shared_expert_gate" in tensor:
                    continue
                if tensor.endswith("input_scale"):
                    assert float(ours.read(tensor)) == pytest.approx(float(theirs.read(tensor)), rel=1e-5), tensor
                else:
                    assert ours.read(tensor).tobytes() == theirs.read(tensor).tobytes(), tensor


def test_torch_encodes_as_numpy_does() -> None:
    """All ties between codes among them, a block of zeros, blocks whose scale is too small, and one too large."""
    random = np.random.default_rng(0)
    weights = random.standard_normal((3, 5, 64)).astype(np.float32)
    weights[0, 0, :16] = np.array([0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5, 6])
    weights[1, 1], weights[1, 2], weights[2, 4, 16:32] = 0, 1e-12, 100
    scale_2 = np.array([1, 0.01, 1 / 2688], np.float32)
    codes, scales = torch_encode.nvfp4(torch.from_numpy(weights), torch.from_numpy(scale_2))
    for i in range(3):
        packed_, scale, _ = encode(weights[i], scale_2[i])
        np.testing.assert_array_equal(codes[i].numpy(), packed_)
        np.testing.assert_array_equal(scales[i].view(torch.uint8).numpy(), scale.view(np.uint8))


def test_batches_hold_turns_of_a_length() -> None:
    made = [Turn(i, {"input_ids": np.zeros((1, n), np.int64)}) for i, n in enumerate((9, 3, 40, 4, 8))]
    assert [[t.number for t in batch] for batch in batches(made, 20)] == [[1, 3], [4, 0], [2]]


def test_switches_and_unreached_experts(
    checkpoints: dict[str, Path], samples: list[Sample], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """On the checkpoint laid out as published; of 16 experts, top 1, one short prompt reaches few."""
    root = Checkpoint(checkpoints["published"])
    exclude = ["thinker.model.layers.0.*", "talker.model.layers.*.mlp.experts", "*.o_proj"]
    report = quantize_to(tmp_path, root, samples, OPTIONAL, exclude)
    thinker, talker = (Checkpoint(tmp_path / name) for name in ("thinker", "talker"))
    linears = {
        n.removesuffix(".weight")
        for n in root.tensors
        if n.startswith(("thinker.lm_head", "thinker.model.layers", "talker"))
        and "norm" not in n
        and n.endswith(".weight")
        and "embedding" not in n
        and not n.endswith("mlp.gate.weight")
    }
    kept = {
        n
        for n in linears
        if n.startswith("thinker.model.layers.0.")
        or ".o_proj" in n
        or "_projection." in n
        or n.startswith("talker.model")
        and ".mlp.experts." in n
    }
    assert set(packed(thinker)) | set(packed(talker)) == linears - kept
    for n in packed(talker):
        np.testing.assert_array_equal(
            encode(root.read(f"{n}.weight"), talker.read(f"{n}.weight_scale_2"))[0], talker.read(f"{n}.weight"), err_msg=n
        )

    unreached = report["experts_never_reached"]["thinker.model.layers.1.mlp"]
    assert 0 < len(unreached) < 16
    quantize._warn_of_unreached(report)
    assert "calibration never reached" in capsys.readouterr().err
    scales = {float(thinker.read(f"thinker.model.layers.1.mlp.experts.{e}.down_proj.input_scale")) for e in range(16)}
    assert len(scales) == 1 and min(scales) > 0
    for e in unreached:
        name = f"thinker.model.layers.1.mlp.experts.{e}.down_proj"
        weight, original = decode(*read(thinker, name)), root.read(f"{name}.weight").astype(np.float32)
        assert np.linalg.norm(weight - original) < 0.15 * np.linalg.norm(original)


def test_all_that_may_be_included_is_spoken(root: Checkpoint, samples: list[Sample], tmp_path: Path) -> None:
    """Exported and built for a CPU: a turn's tokens and codes are those of transformers with the decoded weights."""
    quantize_to(tmp_path, root, samples, OPTIONAL, [])
    parts = {name: Checkpoint(tmp_path / name) for name in ("thinker", "talker")}
    for source, arguments in (
        (tmp_path / "thinker", ["--components", "thinker"]),
        (tmp_path / "talker", ["--components", "talker,code_predictor"]),
        (root.directory, ["--components", "visual,audio,code2wav"]),
    ):
        run("offline.export_onnx", source, tmp_path / "onnx", "--dtype", "float32", *arguments)
    run("offline.build_engines", tmp_path / "onnx", tmp_path / "engines")
    hello = [{"role": "user", "content": [{"type": "text", "text": "what do you see and hear"}]}]
    length = {"max_generate_length": 10, "max_audio_length": 16}
    expected = oracle.Oracle(decoded(root, parts, tmp_path / "decoded")).generate(hello, **length)
    pipeline = Pipeline.open(tmp_path / "engines", threads=1)
    *_, finished = pipeline.generate(Request(hello, **length, temperature=0, talker_temperature=0))
    assert finished.token_ids == expected.token_ids
    np.testing.assert_array_equal(finished.codes, expected.codes)


@pytest.mark.parametrize("form", ["fp8", "nvfp4"])
def test_the_code_predictor_in_fewer_bits(root: Checkpoint, samples: list[Sample], out: Path, tmp_path: Path, form: str) -> None:
    """Thinker and Talker stay as they are without it; transformers with the decoded weights says the same codes."""
    settings = Settings(cp_quantization=form, **SHORT)
    with quantised(root, samples, tmp_path / "quantised", "cpu", settings) as (folder, report):
        shutil.move(folder, tmp_path / "parts")
    parts = {name: Checkpoint(tmp_path / "parts" / name) for name in ("thinker", "talker")}
    smaller = {n.removesuffix("_scale") for n in parts["talker"].tensors if n.endswith("weight_scale")} - {
        f"{n}.weight" for n in packed(Checkpoint(out / "talker"))
    }
    assert smaller == {n for n in root.tensors if CODE_PREDICTOR.fullmatch(n)}
    for name in smaller:
        assert str(parts["talker"].info(name).dtype) == {"fp8": "float8_e4m3fn", "nvfp4": "uint8"}[form]
        largest = report["ranges"][name.removesuffix(".weight")]["input_quantizer"]
        scale = float(parts["talker"].read(name.replace("weight", "input_scale")))
        assert scale * (448 if form == "fp8" else 2688) >= 0.999 * largest > 0  # q, k and v share theirs in NVFP4
    quant = json.loads((tmp_path / "parts/talker/hf_quant_config.json").read_text())["quantization"]
    assert quant["quant_algo"] == {"fp8": "MIXED_PRECISION", "nvfp4": "NVFP4"}[form]
    if form == "fp8":
        assert {n for n, layer in quant["quantized_layers"].items() if layer["quant_algo"] == "FP8"} == {
            n.removeprefix("talker.").removesuffix(".weight") for n in smaller
        }
    for source, components in (
        (tmp_path / "parts/thinker", "thinker"),
        (tmp_path / "parts/talker", "talker,code_predictor"),
        (root.directory, "visual,audio,code2wav"),
    ):
        run("offline.export_onnx", source, tmp_path / "onnx", "--dtype", "float32", "--components", components)
    run("offline.build_engines", tmp_path / "onnx", tmp_path / "engines")
    hello = [{"role": "user", "content": [{"type": "text", "text": "what do you see and hear"}]}]
    length = {"max_generate_length": 10, "max_audio_length": 16}
    expected = oracle.Oracle(decoded(root, parts, tmp_path / "decoded")).generate(hello, **length)
    pipeline = Pipeline.open(tmp_path / "engines", threads=1)
    *_, finished = pipeline.generate(Request(hello, **length, temperature=0, talker_temperature=0))
    assert finished.token_ids == expected.token_ids
    np.testing.assert_array_equal(finished.codes, expected.codes)


def test_forward_with_exported_tensors_is_the_fake_quantised_forward(
    root: Checkpoint, samples: list[Sample], out: Path, parts: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """W4A4 in float32: ModelOpt's quantisers in memory (scales unified as its exporter does) against nothing but the
    exported tensors and offline.quantization.nvfp4."""
    report = json.loads((out / "quantization_report.json").read_text())
    reference = modelopt_reference.Reference(root)
    reference.calibrate(select(input_sizes(root), [], []), samples, **SHORT)
    for name, kinds in report["ranges"].items():  # the Talker's codes are drawn here, and greedy there
        if name.startswith("talker."):
            experts = reference.parts.get_submodule(name)
            for kind in ("gate_up_proj", "down_proj"):
                getattr(experts, f"{kind}_input_quantizer").amax = torch.tensor(kinds[f"{kind}_input_quantizer"])
    reference.parts["thinker"].config.architectures = ["Thinker"]
    unified_export_hf.requantize_resmooth_fused_llm_layers(reference.parts["thinker"])
    for module in (tensor_quant, tensor_quantizer):
        if hasattr(module, "dynamic_block_quantize_op"):  # the shipped one is a CUDA kernel
            monkeypatch.setattr(module, "dynamic_block_quantize_op", modelopt_block_quantize)
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 256, (1, 12), generator=random)
    rows = torch.randn(1, 9, 64, generator=random)

    def forward(model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            hidden = model.thinker.model.language_model(input_ids=ids).last_hidden_state
            return model.thinker.lm_head(hidden), model.talker.model(inputs_embeds=rows).last_hidden_state

    fake = forward(reference.model.float())
    plain = modelopt_reference.Reference(root).model.float()
    exact = forward(plain)
    with exported_linears(plain, parts):
        exported = forward(plain)
    for ours, theirs, unquantised in zip(exported, fake, exact):
        assert (theirs - unquantised).norm() > 0.02 * unquantised.norm()  # quantisation is on
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def modelopt_block_quantize(inputs: torch.Tensor, block_size: int, amax: torch.Tensor, *formats: int) -> torch.Tensor:
    """ModelOpt's NVFP4QTensor, there and back, in place of its fused CUDA kernel."""
    assert (block_size, *formats) == (BLOCK, 4, 2, 8, 4)
    largest = amax.float() / (6 * 448)
    stored, scale, scale_2 = NVFP4QTensor.quantize(inputs, block_size, weights_scaling_factor_2=largest)
    return stored.dequantize(scale=scale, double_scale=scale_2, block_sizes={-1: block_size})


# ---- refusals -------------------------------------------------------------------------------------------------------
def test_refuses_what_cannot_be_quantised(checkpoints: dict[str, Path]) -> None:
    sizes = {
        "thinker.lm_head": [64],
        "thinker.model.layers.0.mlp.experts": [96, 40],
        "talker.model.layers.3.mlp.experts": [64, 32],
    }
    with pytest.raises(CheckpointError, match=r"'\*.mlp.gate' matches no module .* thinker.model.layers.\*.mlp.exp"):
        select(sizes, ["*.mlp.gate"], [])
    with pytest.raises(CheckpointError, match=r"has \[96, 40\] inputs.*multiples of 16.*--exclude 'thinker.model"):
        select(sizes, [], [])
    assert select(sizes, ["*lm_head"], ["thinker.model.*"]) == ["thinker.lm_head", *list(sizes)[2:]]
    with pytest.raises(CheckpointError, match="nothing is left"):
        select(sizes, [], ["*"])


@pytest.mark.parametrize(
    "include, exclude, refused",
    [
        ("talker.*_projection.*", [], True),
        ("talker.hidden_projection.linear_fc2", [], True),
        ("talker.*", [], True),
        ("talker.*", ["talker.text_projection.*"], True),
        ("talker.*", ["talker.*_projection.*"], False),
    ],
)
def test_refuses_projections_before_anything_is_loaded(
    root: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture, include: str, exclude: list[str], refused: bool
) -> None:
    assert (
        quantize.main(
            [
                "--model_dir",
                str(root.directory),
                "--output_dir",
                str(tmp_path / "out"),
                "--calibration_dir",
                str(tmp_path),
                "--include",
                include,
                "--exclude",
                *exclude,
                "talker.none",
            ]
        )
        == 1
    )
    said = capsys.readouterr().err  # if not refused, there are no samples to calibrate with
    assert refused == bool(re.search(r"talker\.\w+_projection\.linear_fc\d cannot be NVFP4.*--exclude 'talker", said))
    assert refused != ("no audio sample" in said) and not (tmp_path / "out").exists()


def test_refuses_a_module_that_no_sample_uses(root: Checkpoint, samples: list[Sample], tmp_path: Path) -> None:
    text = [s for s in samples if s.kind == "text"]
    with pytest.raises(CheckpointError, match="talker.hidden_projection.linear_fc1: no calibration sample reached it"):
        quantize_to(tmp_path, root, text, ["talker.hidden_projection.*"], [])
    assert not list(tmp_path.iterdir())


def test_refuses_an_incomplete_checkpoint(
    root: Checkpoint, out: Path, samples: list[Sample], samples_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for file in root.directory.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads(json.dumps(root.config))
    config["thinker_config"]["text_config"]["num_hidden_layers"] += 1
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"thinker\.model\.layers\.4\.\S+ is missing"):
        quantize_to(tmp_path, Checkpoint(tmp_path), samples, [], [])
    arguments = ["--output_dir", str(tmp_path / "none"), "--calibration_dir", str(samples_dir)]
    assert quantize.main(["--model_dir", str(out / "thinker"), *arguments]) == 1
    assert "is not a complete qwen3_omni_moe checkpoint" in capsys.readouterr().err
    assert quantize.main(["--model_dir", str(root.directory), *arguments[:3], str(tmp_path)]) == 1
    assert "no audio sample" in capsys.readouterr().err


def test_unreachable_datasets_are_a_clear_error(root: Checkpoint, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "offline.quantize", "--model_dir", root.directory, "--output_dir", tmp_path / "out"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    assert "error: openslr/librispeech_asr" in done.stderr and "--calibration_dir" in done.stderr, done.stderr
