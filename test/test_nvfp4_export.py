"""A quantised checkpoint through export and build on a CPU: the exported codes, and nothing else, decide the result."""

from pathlib import Path

import numpy as np
import onnx
import oracle
import pytest
import torch
from conftest import run
from nvfp4_reference import decoded, exported_linears, packed, split

from offline.checkpoints.checkpoint import Checkpoint
from offline.graphs.external_data import StoredGraph
from omni_ros.engines.open import open_engine
from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.request import Finished, Request

HELLO = [{"role": "user", "content": [{"type": "text", "text": "what do you see and hear"}]}]


@pytest.fixture(scope="module")
def root(checkpoints) -> Checkpoint:
    return Checkpoint(checkpoints["plain"])


@pytest.fixture(scope="module", params=[False, True], ids=["default", "heads"])
def parts(request, root, tmp_path_factory) -> dict[str, Checkpoint]:
    """Quantised as by default, and with lm_head and codec_head too."""
    return split(root, tmp_path_factory.mktemp("nvfp4"), heads=request.param)


@pytest.fixture(scope="module", params=["float", "nvfp4"])
def activations(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def built(root, parts, activations, tmp_path_factory) -> Path:
    """Exported in three runs, as the README says, then built for a CPU; returns the folder that holds onnx/ and engines/."""
    out = tmp_path_factory.mktemp(f"activations-{activations}")
    for name, part in parts.items():
        run(
            "offline.export_onnx",
            part.directory,
            out / "onnx",
            "--components",
            name,
            "--dtype",
            "float32",
            "--activations",
            activations,
        )
    run("offline.export_onnx", root.directory, out / "onnx", "--skip-llm", "--dtype", "float32")
    run("offline.build_engines", out / "onnx", out / "engines")
    return out


def test_codes_and_scales_are_bit_exact(built, parts):
    for name, part in parts.items():
        graph = StoredGraph(built / "onnx" / name / "llm")
        onnx.checker.check_model(str(built / "onnx" / name / "llm" / "model.onnx"))
        seen = 0
        for codes, scale, scale_2 in graph.packed.values():
            stack = len(graph.shape(codes)) == 3
            head = codes.startswith(f"{name}.")  # the one linear that is not below thinker.model or talker.model
            linear = codes if head else f"{name}.model.{codes.removesuffix('.weight')}"
            for e in range(graph.shape(codes)[0]) if stack else [None]:
                source = linear.replace(".experts.", f".experts.{e}.") if stack else linear
                stored = [part.read(f"{source}.{t}") for t in ("weight", "weight_scale", "weight_scale_2")]
                last = graph.raw(scale_2)
                found = [graph.raw(codes, e), graph.raw(scale, e), last[e] if stack else last]
                for ours, theirs in zip(found, stored):
                    assert ours.tobytes() == theirs.tobytes()
                seen += 1
        assert seen == len(packed(part))
        head = {"thinker": "thinker.lm_head", "talker": "talker.codec_head"}[name]  # where CudaDecoder looks for it
        quantised = {f"{head}_scale", f"{head}_scale_2"} if f"{head}.weight_scale" in part else set()
        assert {t for t in graph.tensors if t.startswith(head)} == {head} | quantised


@pytest.fixture(scope="module")
def engines(built):
    return {name: open_engine(built / "engines" / name, threads=1) for name in ("thinker", "talker")}


def test_teacher_forced_logits_equal_torch(engines, checkpoints, parts, activations):
    """Row by row over the KV cache, against a torch forward of all rows with the exported tensors."""
    model = oracle.Oracle(checkpoints["plain"]).model  # not the cached one: its weights are replaced
    model.set_experts_implementation("eager")  # experts as plain linears, whose inputs the reference can round
    ids = torch.randint(0, 256, (1, 14), generator=torch.Generator().manual_seed(0))
    rows = torch.randn(1, 14, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), exported_linears(model, parts, activations == "nvfp4"):
        embeds = model.thinker.get_input_embeddings()(ids)
        expected = {
            "thinker": model.thinker.lm_head(model.thinker.model.language_model(input_ids=ids).last_hidden_state),
            "talker": model.talker.codec_head(model.talker.model(inputs_embeds=rows).last_hidden_state),
        }
    for name, inputs in (("thinker", embeds), ("talker", rows)):
        engine, state = engines[name], engines[name].new_state()
        for start, end in ((0, 6), *((i, i + 1) for i in range(6, 14))):
            feed = {
                "inputs_embeds": inputs[0, start:end].numpy(),
                "position_ids": np.tile(np.arange(start, end, dtype=np.float32), (3, 1)),
            }
            if name == "thinker":
                feed["deepstack"] = np.zeros((2, end - start, 64), np.float32)
            found = engine.run(feed, state)["logits"][0]
            np.testing.assert_allclose(found, expected[name][0, end - 1].numpy(), atol=1e-4)


@pytest.mark.parametrize("activations", ["float"], indirect=True)  # transformers has no W4A4 forward to generate with
def test_weight_only_turn_equals_transformers(built, root, parts, tmp_path):
    """Tokens and codes of a whole turn, against transformers on a checkpoint of the decoded weights."""
    transformers = oracle.Oracle(decoded(root, parts, tmp_path / "decoded"))
    expected = transformers.generate(HELLO, max_generate_length=10, max_audio_length=16)
    pipeline = Pipeline.open(built / "engines", threads=1)
    *_, finished = pipeline.generate(
        Request(HELLO, max_generate_length=10, max_audio_length=16, temperature=0, talker_temperature=0)
    )
    assert isinstance(finished, Finished) and finished.token_ids == expected.token_ids
    np.testing.assert_array_equal(finished.codes, expected.codes)


def test_activations_need_a_quantised_checkpoint(root, tmp_path, capfd):
    from offline import export_onnx

    assert export_onnx.main([str(root.directory), str(tmp_path / "out"), "--activations", "nvfp4"]) == 1
    assert "no NVFP4 layers" in capfd.readouterr().err
