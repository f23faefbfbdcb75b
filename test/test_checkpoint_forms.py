"""What an export refuses by name before it writes anything: tensors of no part, other quantised forms, rope settings."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from conftest import CHECKPOINTS
from nvfp4_reference import split

from offline import export_onnx
from offline.checkpoints.checkpoint import Checkpoint, write_safetensors
from offline.checkpoints.rope import read_rope
from offline.checkpoints.whole import join
from offline.quantization.nvfp4 import encode
from omni_ros.errors import CheckpointError

ATTENTION = "thinker.model.layers.1.self_attn.o_proj"


@pytest.fixture(scope="module")
def root(checkpoints) -> Checkpoint:
    return Checkpoint(checkpoints["plain"])


@pytest.fixture(scope="module")
def parts(root, tmp_path_factory) -> dict[str, Checkpoint]:
    return split(root, tmp_path_factory.mktemp("split"))


@pytest.fixture(scope="module")
def whole(root, parts, tmp_path_factory) -> Checkpoint:
    """One folder with every part, quantised; in several shards."""
    directory = tmp_path_factory.mktemp("whole")
    join(root, list(parts.values()), directory, shard_bytes=1_000_000)
    return Checkpoint(directory)


def rewrite(source: Checkpoint, directory: Path, change: dict[str, np.ndarray | None]) -> Path:
    """A copy of a whole checkpoint with some tensors changed, added or (None) left out."""
    directory.mkdir()
    tensors = {name: source.read(name) for name in source.tensors} | change
    tensors = {k: (v.dtype, v.shape, [v]) for k, v in tensors.items() if v is not None}
    write_safetensors(directory / "model.safetensors", tensors)
    for file in source.directory.iterdir():
        if file.suffix in (".json", ".jinja") and "index" not in file.name:
            shutil.copy(file, directory / file.name)
    return directory


def refusal(capfd, checkpoint: Path, *options: str) -> str:
    out = checkpoint.parent / "onnx"
    assert export_onnx.main([str(checkpoint), str(out), *options]) == 1
    assert not [p for p in out.rglob("*") if p.is_file()]
    error = capfd.readouterr().err
    return error[error.index("error: ") :]


def nvfp4(name: str, shape: tuple[int, int] = (32, 64)) -> dict[str, np.ndarray]:
    codes, scale, scale_2 = encode(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    return {f"{name}.weight": codes, f"{name}.weight_scale": scale, f"{name}.weight_scale_2": np.array(scale_2)}


# ---- which parts ------------------------------------------------------------------------------------------------------
def folders(tree: Path) -> set[str]:
    return {str(p.parent.relative_to(tree)) for p in tree.rglob("config.json")}


EVERY = {"thinker/llm", "talker/llm", *(f"multimodal/{n}" for n in ("audio", "visual", "code2wav", "code_predictor"))}


def test_every_part_that_a_checkpoint_has(root, parts, whole, tmp_path):
    """Without flags. A folder that has the part's name already is not doubled."""
    export = lambda source, out, *options: export_onnx.main([str(source.directory), str(out), *options])  # noqa: E731
    assert export(whole, tmp_path / "whole") == 0 and folders(tmp_path / "whole") == EVERY
    assert export(parts["thinker"], tmp_path / "a" / "thinker") == 0 and folders(tmp_path / "a") == {"thinker/llm"}
    assert export(parts["talker"], tmp_path / "b" / "talker") == 0 and folders(tmp_path / "b") == {"talker/llm"}
    assert export(parts["talker"], tmp_path / "c") == 0 and folders(tmp_path / "c") == {"talker/llm"}
    rest = ("--components", "visual,audio,code2wav,code_predictor")
    assert export(root, tmp_path / "d" / "multimodal", *rest) == 0
    assert folders(tmp_path / "d") == {f for f in EVERY if f.startswith("multimodal")}
    assert export(root, tmp_path / "thinker") == 0 and folders(tmp_path / "thinker") == EVERY
    for tree, folder in (("a", "thinker/llm"), ("c", "talker/llm"), ("d", "multimodal/audio")):
        for file in ("model.onnx", "model.onnx.data"):  # float16 each time, though scales are float32
            assert (tmp_path / tree / folder / file).read_bytes() == (tmp_path / "whole" / folder / file).read_bytes()


def test_a_part_that_config_describes_and_the_shards_lack(root, tmp_path, capfd):
    checkpoint = rewrite(root, tmp_path / "c", {n: None for n in root.tensors if n.startswith("code2wav.")})
    assert "no tensor of code2wav" in refusal(capfd, checkpoint)
    assert "is missing" in refusal(capfd, checkpoint, "--components", "audio,code2wav")
    assert export_onnx.main([str(checkpoint), str(tmp_path / "onnx"), "--components", "audio"]) == 0


def test_tensors_of_no_part(root, tmp_path, capfd):
    """As a checkpoint whose keys have other names: it must not export as something else."""
    renamed = {f"model.{n}": root.read(n) for n in root.tensors}
    checkpoint = rewrite(root, tmp_path / "c", dict.fromkeys(root.tensors) | renamed)
    assert f"{len(renamed)} of {len(renamed)} tensors belong to no part" in refusal(capfd, checkpoint, "--components", "audio")
    checkpoint = rewrite(root, tmp_path / "d", {"thinker.extra.weight": np.ones(2, np.float32)})
    assert "thinker.extra.weight" in refusal(capfd, checkpoint, "--components", "audio")


@pytest.mark.parametrize(
    "component, name",
    [
        ("thinker", "thinker.model.layers.1.self_attn.o_proj.bias"),
        ("audio", "thinker.audio_tower.layers.0.extra.bias"),
        ("code2wav", "code2wav.decoder.1.block.0.gamma"),
        ("talker", "talker.model.layers.0.self_attn.k_proj.extra_scale"),
    ],
)
def test_tensors_that_no_graph_uses(root, tmp_path, capfd, component, name):
    checkpoint = rewrite(root, tmp_path / "c", {name: np.ones(64, np.float32)})
    error = refusal(capfd, checkpoint, "--components", component)
    assert name in error and "does not account for 1 weights" in error


def test_buffers_that_older_versions_saved_are_no_weights(root, tmp_path):
    name = "thinker.model.layers.0.self_attn.rotary_emb.inv_freq"
    checkpoint = rewrite(root, tmp_path / "c", {name: np.ones(16, np.float32)})
    assert export_onnx.main([str(checkpoint), str(tmp_path / "onnx"), "--components", "thinker"]) == 0


# ---- which weights ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name",
    [
        "thinker.audio_tower.layers.0.fc1",
        "thinker.visual.blocks.1.attn.qkv",
        "talker.text_projection.linear_fc1",
        "talker.hidden_projection.linear_fc2",
        "code2wav.pre_transformer.layers.0.mlp.up_proj",
        "thinker.lm_head",
        "talker.codec_head",
        "talker.code_predictor.lm_head.3",
    ],
)
def test_four_bits_where_sixteen_have_to_stay(root, tmp_path, capfd, name):
    """Refused whatever is exported: the sweep that took this took more."""
    checkpoint = rewrite(root, tmp_path / "c", nvfp4(name))
    assert f"{name}.weight" in refusal(capfd, checkpoint, "--components", "thinker")


def test_a_head_that_was_to_have_four_bits(root, tmp_path):
    parts = split(root, tmp_path, heads=True)
    for name, part in parts.items():
        assert export_onnx.main([str(part.directory), str(tmp_path / "onnx" / name)]) == 0
    (tmp_path / "whole").mkdir()
    join(root, list(parts.values()), tmp_path / "whole")
    assert export_onnx.main([str(tmp_path / "whole"), str(tmp_path / "whole-onnx"), "--skip-visual", "--skip-audio"]) == 0


@pytest.mark.parametrize(
    "tensors, said",
    [
        ({f"{ATTENTION}.qzeros": np.zeros(4, np.int32)}, "zero points"),
        ({f"{ATTENTION}.weight_zero_point": np.zeros(4, np.uint8)}, "zero points"),
        ({f"{ATTENTION}.qweight": np.zeros((4, 4), np.int32)}, "AWQ"),
        ({f"{ATTENTION}.pre_quant_scale": np.ones(64, np.float32)}, "AWQ"),
        ({f"{ATTENTION}.weight_scale": np.ones(1, np.float32)}, "are not NVFP4"),
        (
            {
                f"{ATTENTION}.weight": np.ones((64, 128), ml_dtypes.float8_e4m3fn),
                f"{ATTENTION}.weight_scale": np.ones(1, np.float32),
            },
            "float8_e4m3fn weights",
        ),
        ({**nvfp4(ATTENTION), f"{ATTENTION}.weight_scale": np.ones((32, 4), np.float32)}, "block scales are float32"),
        (nvfp4("thinker.model.layers.0.mlp.experts.0.gate_up_proj"), "gate and up in one"),
    ],
)
def test_other_quantised_forms(root, tmp_path, capfd, tensors, said):
    checkpoint = rewrite(root, tmp_path / "c", tensors)
    error = refusal(capfd, checkpoint, "--components", "thinker")
    assert said in error and next(iter(tensors)).rsplit(".", 1)[0] in error


def test_scales_of_fused_gate_and_up(root, whole, tmp_path, capfd):
    """One number for each of the two: the same number twice is read as that number, two different ones are refused."""
    name = "thinker.model.layers.1.mlp.experts.2.gate_proj.weight_scale_2"
    scale = whole.read(name)
    for n, values in enumerate(([scale], [scale, scale])):
        checkpoint = rewrite(whole, tmp_path / f"same{n}", {name: np.array(values, np.float32)})
        out = tmp_path / f"onnx{n}" / "thinker"
        assert export_onnx.main([str(checkpoint), str(out), "--components", "thinker"]) == 0
        if n:
            for file in ("model.onnx", "model.onnx.data"):
                assert (out / "llm" / file).read_bytes() == (tmp_path / "onnx0" / "thinker" / "llm" / file).read_bytes()
    checkpoint = rewrite(whole, tmp_path / "different", {name: np.array([scale, 2 * scale], np.float32)})
    capfd.readouterr()
    assert name in refusal(capfd, checkpoint, "--components", "thinker")


def test_one_folder_is_its_parts(root, parts, whole):
    """Every tensor is the part's, or the root's where no part has it; config.json and shards are those of a whole model."""
    assert len(list(whole.directory.glob("*.safetensors"))) > 2 and whole.config == root.config and whole.part is None
    for name in whole.tensors:
        part = parts.get(name.split(".")[0])
        source = part if part is not None and name in part else root
        assert whole.read(name).tobytes() == source.read(name).tobytes(), name
    assert whole.tensors.keys() == root.tensors.keys() | parts["thinker"].tensors.keys() | parts["talker"].tensors.keys()
    quantization = json.loads((whole.directory / "hf_quant_config.json").read_text())["quantization"]
    assert quantization["quant_algo"] == "NVFP4" and "thinker.lm_head" in quantization["exclude_modules"]
    assert not any("mlp.experts" in name for name in quantization["exclude_modules"])


# ---- rope ---------------------------------------------------------------------------------------------------------------
OLD = {
    "rope_theta": 1e6,
    "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [8, 4, 4], "interleaved": True},
}
NEW = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 4, 4], "mrope_interleaved": True}}


@pytest.mark.parametrize("section", [OLD, NEW, {**OLD, **NEW}, {**NEW, "rope_theta": 1e6}])
def test_both_forms_are_read(section):
    rope = read_rope(section, "here")
    assert rope.theta == 1e6 and rope.mrope_section == (8, 4, 4)


@pytest.mark.parametrize(
    "section, said",
    [
        ({}, "lacks rope_theta"),
        ({"rope_scaling": None}, "lacks rope_theta"),
        ({"rope_parameters": {"rope_type": "default"}}, "lacks rope_theta"),
        ({**NEW, "rope_theta": 1e4}, "rope_theta is 10000.0 in one place and 1000000.0"),
        ({**OLD, "rope_parameters": {"rope_theta": 1e6, "mrope_section": [8, 5, 3]}}, "mrope_section"),
        ({"rope_parameters": {**NEW["rope_parameters"], "factor": 4.0}}, "factor"),
        ({"rope_parameters": {**NEW["rope_parameters"], "attention_factor": 1.0}}, "attention_factor"),
        ({**OLD, "rope_local_base_freq": 1e4}, "rope_local_base_freq"),
        ({"rope_theta": 1e6, "rope_scaling": {"type": "yarn"}}, "yarn"),
        ({"rope_parameters": {**NEW["rope_parameters"], "mrope_interleaved": False}}, "mrope_interleaved = False"),
        ({"rope_parameters": {**NEW["rope_parameters"], "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
    ],
)
def test_what_rope_settings_are_refused(section, said):
    with pytest.raises(CheckpointError, match="^here: ") as caught:
        read_rope(section, "here")
    assert said in str(caught.value)


def test_the_published_layout_is_that_of_transformers_4(checkpoints):
    """The fixture that the equality tests run on: both forms are among CHECKPOINTS."""
    forms = {n: json.loads((checkpoints[n] / "config.json").read_text())["thinker_config"]["text_config"] for n in CHECKPOINTS}
    assert "rope_scaling" in forms["published"] and "rope_parameters" in forms["plain"]
