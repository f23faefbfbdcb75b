"""Code2Wav of `--device cuda`: no convolution is left, and the waveform is the same. Its graph runs on a CPU, too."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from shuffled_graph import shuffle
from test_code2wav import CAPACITY, CONFIGS, TOLERANCE, Case, Waveform, build, chunkings
from test_code2wav import test_reset_forgets_the_last_waveform as test_reset_forgets_the_last_waveform  # with the `case` of here

from offline.build_engines import build_tree
from omni_ros.engines.config import read_config
from omni_ros.engines.onnxruntime.engine import OnnxRuntimeEngine
from omni_ros.pipeline.code2wav import Code2Wav


@pytest.fixture(scope="module", params=CONFIGS)
def case(request, tmp_path_factory) -> Case:
    """Its `vocoder` is the lowered engine of the float32 export."""
    made = Case(tmp_path_factory.mktemp(request.param), *CONFIGS[request.param])
    made.vocoder = lowered(made.root, "float32")
    return made


def lowered(root: Path, dtype: str) -> Waveform:
    """The engine for CUDA from the export in `root`/dtype, on the CPU."""
    build_tree(root / dtype, root / dtype / "cuda", "cuda", {"code2wav": {"capacity": CAPACITY}})
    directory = root / dtype / "cuda" / "code2wav"
    return Waveform(Code2Wav(OnnxRuntimeEngine(directory, read_config(directory), threads=1)))


def graphs(case: Case) -> tuple[onnx.GraphProto, onnx.GraphProto]:
    """As exported; as lowered."""
    folders = case.root / "float32" / "multimodal" / "code2wav", case.vocoder.engine.directory
    return tuple(onnx.load(folder / "model.onnx", load_external_data=False).graph for folder in folders)


def test_any_chunking_is_the_full_decode(case):
    spf, lookahead = case.vocoder.samples_per_frame, case.vocoder.lookahead_samples
    frames = case.codes.shape[1]
    for name, chunks in {**chunkings(frames), "1, 1, 2, 5": [1, 1, 2, 5, frames - 9]}.items():
        parts = case.stream(case.codes, chunks)
        assert [len(p) for p in parts] == [n * spf - (lookahead if i == 0 else 0) for i, n in enumerate(chunks)], name
        np.testing.assert_allclose(np.concatenate(parts), case.wave, rtol=0, atol=TOLERANCE, err_msg=name)


def test_one_run_of_all_frames_is_the_full_decode(case):
    """`decode` would cut it."""
    engine = case.vocoder.engine
    np.testing.assert_allclose(engine.run({"codes": case.codes}, engine.new_state())["pcm"], case.wave, rtol=0, atol=TOLERANCE)


def test_a_float16_export_is_computed_in_float32(case):
    """As the CPU engine does: the two differ by less than float16 could tell."""
    on_cpu = build(case.root, "float16")
    vocoder = lowered(case.root, "float16")
    frames = case.codes.shape[1]
    chunks = np.split(case.codes, [1, 2, 4, 9, frames - 20], axis=1)
    streamed = np.concatenate([vocoder.decode(chunk) for chunk in chunks])
    np.testing.assert_allclose(streamed, on_cpu.decode(case.codes), rtol=0, atol=1e-5)
    graph = onnx.load(vocoder.engine.directory / "model.onnx", load_external_data=False).graph
    types = {t.data_type for t in graph.initializer} | {v.type.tensor_type.elem_type for v in [*graph.input, *graph.output]}
    assert types == {TensorProto.FLOAT, TensorProto.INT64}
    assert json.loads((vocoder.engine.directory / "config.json").read_text())["dtype"] == "float32"


def test_convolutions_are_matrix_products_without_much_around_them(case):
    exported, graph = graphs(case)
    before, after = (Counter(n.op_type for n in g.node) for g in (exported, graph))
    convolutions, depthwise = before["Conv"] + before["ConvTranspose"], before["LayerNormalization"]  # one each in a convnext
    assert not {"Conv", "ConvTranspose"} & after.keys()
    assert after["Gemm"] == before["Gemm"] + convolutions - depthwise and after["ReduceSum"] == depthwise
    assert after["Transpose"] == 4 * before["Attention"]  # its heads; nothing else moves axes
    assert len(graph.node) <= len(exported.node) + 2 * convolutions  # Gather, Reshape, and indices that stages share


def test_state_is_channels_last(case):
    states = {s.input: s.shape for s in case.vocoder.engine.config.state}
    exported, _ = graphs(case)
    convolutions = 0
    for value in exported.input:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if value.name in states and len(shape) == 3:
            convolutions += 1
            assert states[value.name] == [shape[2], shape[1]], value.name
    assert convolutions > 0


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_nodes_does_not_matter(case, tmp_path, seed):
    """What belongs together is found by the names of values: as few nodes, and the same waveform."""
    shuffle(case.root / "float32" / "multimodal" / "code2wav", tmp_path / "onnx" / "multimodal" / "code2wav", seed)
    build_tree(tmp_path / "onnx", tmp_path, "cuda", {"code2wav": {"capacity": CAPACITY}})
    vocoder = Waveform(Code2Wav(OnnxRuntimeEngine(tmp_path / "code2wav", read_config(tmp_path / "code2wav"), threads=1)))
    np.testing.assert_allclose(vocoder.decode(case.codes), case.wave, rtol=0, atol=TOLERANCE)
    graph = onnx.load(tmp_path / "code2wav" / "model.onnx", load_external_data=False).graph
    assert Counter(n.op_type for n in graph.node) == Counter(n.op_type for n in graphs(case)[1].node)
