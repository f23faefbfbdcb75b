"""Broken engine folders: each is refused when it is opened, with one EngineError that names the file and the fix."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from broken_files import (
    change_input_shape,
    drop_position,
    drop_state,
    edit_config,
    raise_capacity,
    rebuild,
    rename_input,
    rename_position,
    write,
)

from omni_ros.engines.open import open_engine
from omni_ros.errors import EngineError
from omni_ros.pipeline.pipeline import ENGINES, Pipeline
from omni_ros.pipeline.request import Finished, Request

# In config.json for people to read: the pipeline works without them.
DESCRIPTIVE = {
    "audio_start_token_id",
    "audio_end_token_id",
    "vision_start_token_id",
    "system_token_id",
    "n_window",
    "num_code_groups",
    "vocab_size",
    "levels",
}


@pytest.fixture
def engines(engine_dirs: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the plain engines that a test may break; unbroken files are links."""
    return shutil.copytree(engine_dirs["plain"], tmp_path / "engines", copy_function=os.link)


def refusal(open_it: Callable[[], object]) -> str:
    """The error's text, once it is one line that says what to do."""
    with pytest.raises(EngineError) as caught:
        open_it()
    text = str(caught.value)
    assert "\n" not in text.strip()
    assert any(fix in text for fix in ("build", "export", "copy")), text
    return text


def zeroed(path: Path) -> bytes:
    """The same .safetensors, header intact, with zeros for data."""
    content = path.read_bytes()
    data = 8 + struct.unpack("<Q", content[:8])[0]
    return content[:data] + bytes(len(content) - data)


# ---- files ----------------------------------------------------------------------------------------------------------
def test_unbroken_copy_opens(engines):
    pipeline = Pipeline.open(engines, threads=1)
    request = Request([{"role": "user", "content": "hello"}], max_generate_length=2, max_audio_length=2)
    assert isinstance(list(pipeline.generate(request))[-1], Finished)
    pipeline.close()


@pytest.mark.parametrize("name", ENGINES)
def test_missing_folder(engines, name):
    shutil.rmtree(engines / name)
    text = refusal(lambda: Pipeline.open(engines))
    assert str(engines / name / "config.json") in text and "offline.build_engines" in text


def test_nothing_there(tmp_path):
    assert "not found" in refusal(lambda: Pipeline.open(tmp_path / "no such folder"))


@pytest.mark.parametrize(
    "file",
    ["model.onnx", "model.onnx.data", "embedding.safetensors", "text_projection.safetensors", "hidden_projection.safetensors"],
)
@pytest.mark.parametrize("damage", ["missing", "truncated", "longer", "empty"])
def test_file_of_the_wrong_size(engines, file, damage):
    path = engines / "talker" / file
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"truncated": content[:-100], "longer": content + b"x", "empty": b""}[damage])
    assert str(path) in refusal(lambda: open_engine(engines / "talker"))


@pytest.mark.parametrize("name", ENGINES)
def test_flipped_byte_in_the_graph(engines, name):
    path = engines / name / "model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    write(path, content)
    text = refusal(lambda: open_engine(engines / name))
    assert str(path) in text and "checksum" in text


# ---- config.json ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[]", b"7", b"null", b"{}", b'{"engine": "talker"}'])
def test_config_that_is_no_config(engines, content):
    write(engines / "talker" / "config.json", content)
    assert str(engines / "talker" / "config.json") in refusal(lambda: open_engine(engines / "talker"))


@pytest.mark.parametrize("key", ["engine", "backend", "inputs", "outputs", "state", "model", "limits", "files"])
@pytest.mark.parametrize("wrong", [None, 3])
def test_config_without_a_section(engines, key, wrong):
    edit_config(engines / "talker", lambda c: c.pop(key) if wrong is None else c.update({key: wrong}))
    text = refusal(lambda: open_engine(engines / "talker"))
    assert "config.json" in text and key in text


@pytest.mark.parametrize("name", ENGINES)
def test_config_without_a_number_the_pipeline_needs(engines, name):
    """Whichever key of `model` and `limits` is gone, the error names it, when opening or (rarely) at the first turn."""
    config = json.loads((engines / name / "config.json").read_text())
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": np.zeros((32, 32, 3), np.uint8)},
                {"type": "audio", "audio": np.zeros(800, np.float32)},
            ],
        }
    ]
    keys = [(section, key) for section in ("model", "limits") for key in config[section]]
    unused = set()
    for section, key in keys:
        write(
            engines / name / "config.json",
            json.dumps({**config, section: {k: v for k, v in config[section].items() if k != key}}).encode(),
        )
        try:
            open_engine(engines / name, threads=1).close()
            pipeline = Pipeline.open(engines, threads=1)
            list(pipeline.generate(Request(messages, max_generate_length=2, max_audio_length=2)))
            unused.add(key)
            pipeline.close()
        except EngineError as e:
            assert str(engines / name / "config.json") in str(e) and key in str(e)
    assert unused <= DESCRIPTIVE


def test_config_of_another_backend(engines):
    edit_config(engines / "talker", lambda c: c.update(backend="tensorflow"))
    assert "tensorflow" in refusal(lambda: open_engine(engines / "talker"))


def change_input_dtype(c: dict) -> None:
    c["inputs"][0]["dtype"] = "float16"


def drop_output(c: dict) -> None:
    del c["outputs"][0]


def change_output_shape(c: dict) -> None:
    c["outputs"][-1]["shape"] = [1, 7]


def rename_state(c: dict) -> None:
    c["state"][0]["input"] = "past_values_0"


def change_state_shape(c: dict) -> None:
    c["state"][1]["shape"][1] += 1


def change_state_dtype(c: dict) -> None:
    c["state"][0]["dtype"] = "int64"


def count_another_input(c: dict) -> None:
    c["position"]["counts"] = "rows"


@pytest.mark.parametrize(
    "disagreement",
    [
        rename_input,
        change_input_shape,
        change_input_dtype,
        drop_output,
        change_output_shape,
        rename_state,
        drop_state,
        change_state_shape,
        change_state_dtype,
        raise_capacity,
        rename_position,
        count_another_input,
        drop_position,
    ],
)
def test_config_that_disagrees_with_its_graph(engines, disagreement):
    edit_config(engines / "talker", disagreement)
    assert str(engines / "talker" / "config.json") in refusal(lambda: open_engine(engines / "talker"))


# ---- sidecars -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("file", ["thinker/embedding", "talker/embedding", "talker/text_projection", "talker/hidden_projection"])
def test_all_zero_weights(engines, file):
    path = engines / f"{file}.safetensors"
    write(path, zeroed(path))
    text = refusal(lambda: Pipeline.open(engines))
    assert str(path) in text and "all zero" in text


@pytest.mark.parametrize("tensor", ["linear_fc1.weight", "linear_fc2.weight"])
def test_one_all_zero_matrix(engines, tensor):
    path = engines / "talker" / "text_projection.safetensors"
    content = bytearray(path.read_bytes())
    length = struct.unpack("<Q", content[:8])[0]
    begin, end = (8 + length + offset for offset in json.loads(content[8 : 8 + length])[tensor]["data_offsets"])
    content[begin:end] = bytes(end - begin)
    write(path, content)
    text = refusal(lambda: open_engine(engines / "talker"))
    assert str(path) in text and tensor in text


def test_zero_biases_are_fine(engines):
    path = engines / "talker" / "text_projection.safetensors"
    content = bytearray(path.read_bytes())
    length = struct.unpack("<Q", content[:8])[0]
    begin, end = (8 + length + offset for offset in json.loads(content[8 : 8 + length])["linear_fc1.bias"]["data_offsets"])
    content[begin:end] = bytes(end - begin)
    rebuild(path, content)
    assert open_engine(engines / "talker", threads=1).verified


def reshape_header(header: dict) -> None:
    header["weight"]["shape"] = header["weight"]["shape"][::-1]


def retype_header(header: dict) -> None:
    header["weight"]["dtype"] = "I99"


def rename_header(header: dict) -> None:
    header["weights"] = header.pop("weight")


def stretch_header(header: dict) -> None:
    header["weight"]["data_offsets"][1] += 64


@pytest.mark.parametrize("change", [reshape_header, retype_header, rename_header, stretch_header])
def test_sidecar_with_another_tensor_than_declared(engines, change):
    path = engines / "talker" / "embedding.safetensors"
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    change(header)
    changed = json.dumps(header).encode()
    rebuild(path, struct.pack("<Q", len(changed)) + changed + content[8 + length :])
    assert str(path) in refusal(lambda: open_engine(engines / "talker"))


@pytest.mark.parametrize(
    "start",
    [
        struct.pack("<Q", 2**60),
        struct.pack("<Q", 3),
        b"\x00" * 16,
        b"\xff" * 16,
        struct.pack("<Q", 8) + b"[1, 2,3]",
        struct.pack("<Q", 8) + b'{"a": 3}',
    ],
)
def test_damaged_sidecar_header(engines, start):
    path = engines / "talker" / "embedding.safetensors"
    write(path, start + path.read_bytes()[len(start) :])
    assert str(path) in refusal(lambda: open_engine(engines / "talker"))


def test_sidecar_that_config_does_not_describe(engines):
    edit_config(engines / "talker", lambda c: c["sidecars"].pop("text_projection.safetensors"))
    assert "text_projection.safetensors" in refusal(lambda: open_engine(engines / "talker"))


# ---- tokenizer, template, processor ---------------------------------------------------------------------------------
@pytest.mark.parametrize("file", ["tokenizer.json", "chat_template.jinja", "processor_config.json"])
def test_missing_text_file(engines, file):
    path = engines / "thinker" / file
    path.unlink()
    assert str(path) in refusal(lambda: Pipeline.open(engines))


@pytest.mark.parametrize("file", ["tokenizer.json", "chat_template.jinja", "processor_config.json"])
def test_text_file_that_was_not_there_when_built(engines, file):
    (engines / "thinker" / file).unlink()
    edit_config(engines / "thinker", lambda c: (c["files"].pop(file), c["checksums"].pop(file)))
    assert str(engines / "thinker") in refusal(lambda: Pipeline.open(engines))


@pytest.mark.parametrize(
    "file, pattern",
    [("tokenizer.json", b"\x00"), ("tokenizer.json", b"{"), ("chat_template.jinja", b"{% if "), ("processor_config.json", b"{")],
)
def test_garbage_of_the_same_size(engines, file, pattern):
    path = engines / "thinker" / file
    size = path.stat().st_size
    rebuild(path, (pattern * size)[:size])
    assert str(engines / "thinker") in refusal(lambda: Pipeline.open(engines))


@pytest.mark.parametrize("content", ["{", "[]", '{"template": ""}'])
def test_damaged_chat_template_json(engines, content):
    (engines / "thinker" / "chat_template.jinja").unlink()
    (engines / "thinker" / "chat_template.json").write_text(content)
    edit_config(engines / "thinker", lambda c: (c["files"].pop("chat_template.jinja"), c["checksums"].pop("chat_template.jinja")))
    assert "chat_template.json" in refusal(lambda: Pipeline.open(engines))


# ---- folders in each other's place ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "place, other",
    [
        ("thinker", "talker"),
        ("talker", "thinker"),
        ("code_predictor", "code2wav"),
        ("code2wav", "talker"),
        ("multimodal/audio", "multimodal/visual"),
        ("multimodal/visual", "multimodal/audio"),
    ],
)
def test_engine_in_the_place_of_another(engines, place, other):
    shutil.rmtree(engines / place)
    shutil.copytree(engines / other, engines / place)
    with pytest.raises(EngineError) as caught:
        Pipeline.open(engines)
    assert str(engines / place) in str(caught.value) and f"expected {Path(place).name}" in str(caught.value)


@pytest.mark.parametrize("name", ENGINES)
def test_engine_of_another_checkpoint(engines, engine_dirs, name):
    """`plain` and `odd` differ in every width."""
    shutil.rmtree(engines / name)
    shutil.copytree(engine_dirs["odd"] / name, engines / name)
    assert "export" in refusal(lambda: Pipeline.open(engines))


def test_tokenizer_of_a_larger_vocabulary(engines, engine_dirs):
    source = engine_dirs["published"] / "thinker" / "tokenizer.json"
    rebuild(engines / "thinker" / "tokenizer.json", source.read_bytes())
    assert "tokenizer.json" in refusal(lambda: Pipeline.open(engines))
