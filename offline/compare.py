"""How far two builds of one model are apart: quantised against 16 bit, int4 against float32, one device against another.

    python -m offline.compare REFERENCE OTHER [--inputFile requests.json] [--outputFile report.json]

REFERENCE answers the requests greedily; every input of its Thinker, Talker and CodePredictor is then given to OTHER's
engines as well, so that one different token does not make all that follows different. The report has, for Thinker and
Talker, how often the most likely token (or code 0) is the same, the mean KL divergence and cosine of their logits, and the
mean cosine of what goes into every layer (if both are ONNX Runtime's for a CPU, whose graphs can be made to show it); for
the CodePredictor, how many codes agree.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from omni_ros.engines.engine import Engine
from omni_ros.engines.open import open_engine
from omni_ros.errors import InputError, OmniError
from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.request import Request
from omni_ros.pipeline.talker import Talker
from omni_ros.pipeline.thinker import Thinker

from .inference.request_file import read_requests
from .outputs.atomic import atomic_file
from .outputs.graph_folder import sha256
from .quantization.spy import Call, spy

QUESTION = [{"role": "user", "content": [{"type": "text", "text": "What can you see and hear, and what can you do?"}]}]
DECODERS = ("thinker", "talker")


def compare(reference: Pipeline, other: Pipeline, requests: list[Request]) -> dict[str, Any]:
    """The report for requests whose temperatures are 0. Raises InputError when the two have different shapes."""
    for name in DECODERS:  # before anything is asked: the engine would refuse rows of another width in its own words
        sizes = [(e.config.model.hidden_size, e.config.model.vocab_size) for e in (reference.engines[name], other.engines[name])]
        if sizes[0] != sizes[1]:
            raise InputError(
                f"the two builds are of different models: the {name} is {sizes[0][0]} wide with {sizes[0][1]} ids in one, "
                f"{sizes[1][0]} wide with {sizes[1][1]} ids in the other"
            )
    with spy(reference) as calls:
        for request in requests:
            for _ in reference.generate(request):
                continue  # only the engine calls matter
    report: dict[str, Any] = {}
    for name in DECODERS:
        pairs = [_replay(other.engines[name], turn) for turn in _turns(calls, name)]
        ours, theirs = (np.concatenate([o["logits"] for pair in pairs for o in pair[side]]) for side in (0, 1))
        if name == "talker":  # ids that are never drawn say nothing
            ours, theirs = (np.delete(x, reference.models.speak().talker.suppressed, axis=1) for x in (ours, theirs))
        report[name] = logits_distance(ours, theirs)
        shown = set.intersection(*(set(pairs[0][side][0]) for side in (0, 1)))
        layers = sorted((k for k in shown if k.startswith("layer_")), key=lambda k: int(k[6:]))
        report[name]["layer_cosine"] = [
            cosine(*(np.concatenate([o[k] for pair in pairs for o in pair[side]]) for side in (0, 1))) for k in layers
        ]
    frames = [c for c in calls if c.engine == "code_predictor"]
    if frames:
        ours, theirs = (np.stack([o["codes"] for o in side]) for side in _replay(other.engines["code_predictor"], frames))
        report["code_predictor"] = {
            "frames": len(ours),
            "code_1": float((ours == theirs)[:, 0].mean()),
            "codes_1_to_15": float((ours == theirs).mean()),
        }
    return report


def _turns(calls: list[Call], engine: str) -> Iterator[list[Call]]:
    """The calls of one engine, cut where a new sequence begins: at every prompt (a prompt has many rows)."""
    turn: list[Call] = []
    for call in (c for c in calls if c.engine == engine):
        if turn and len(call.inputs["inputs_embeds"]) > 1:
            yield turn
            turn = []
        turn.append(call)
    if not turn:
        raise InputError(f"the {engine} was never asked for anything; give requests that speak")
    yield turn


def _replay(engine: Engine, calls: list[Call]) -> tuple[list[dict], list[dict]]:
    """What was answered, and what `engine` answers to the same inputs in one sequence."""
    state = engine.new_state()
    return [c.outputs for c in calls], [engine.run(c.inputs, state) for c in calls]


def logits_distance(exact: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Logits [n, V] of the same steps."""
    if exact.shape != other.shape:
        raise InputError(f"the two builds are of different models: logits {exact.shape[1]} and {other.shape[1]} wide")
    exact, other = exact.astype(np.float64), other.astype(np.float64)  # a KL of 1e-8 is less than float32 rounds
    log_p, log_q = (x - np.logaddexp.reduce(x, axis=1, keepdims=True) for x in (exact, other))
    return {
        "steps": len(exact),
        "top1": float((exact.argmax(1) == other.argmax(1)).mean()),
        "kl": float((np.exp(log_p) * (log_p - log_q)).sum(1).mean()),
        "cosine": cosine(exact, other),
    }


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Mean cosine of the rows of a and b [n, width]."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / np.maximum(lengths, 1e-30)).mean())


# ---- engines whose layers can be seen -------------------------------------------------------------------------------
@contextlib.contextmanager
def open_probed(engine_dir: Path, threads: int) -> Iterator[Pipeline]:
    """A pipeline whose decoders also return `layer_i` [S, H], the rows that enter layer i, if they run on a CPU."""
    pipeline = Pipeline.open(engine_dir, threads)
    with tempfile.TemporaryDirectory() as folder:
        decoders: dict[str, Thinker | Talker] = {"thinker": pipeline.models.thinker, "talker": pipeline.models.speak().talker}
        for name in DECODERS:
            config = pipeline.engines[name].config
            if config.backend != "onnxruntime":
                continue  # on a GPU there is no graph whose outputs could be added to
            engine = open_engine(_with_layers(Path(engine_dir) / name, Path(folder) / name), threads)
            pipeline.engines[name] = decoders[name].engine = engine
        yield pipeline


def _with_layers(source: Path, target: Path) -> Path:
    """A copy of an engine folder (weights linked where possible) whose graph has the residual stream among its outputs."""
    target.mkdir()
    for file in source.iterdir():
        if file.name not in ("model.onnx", "config.json"):
            try:  # ONNX Runtime follows no symbolic link out of the folder
                os.link(file, target / file.name)
            except OSError:  # another file system
                shutil.copy(file, target / file.name)
    model = onnx.load(source / "model.onnx", load_external_data=False)
    config = json.loads((source / "config.json").read_text())
    width = config["model"]["hidden_size"]
    for node in list(model.graph.node):
        weight = next((i for i in node.input if i.startswith("layers.") and i.endswith(".input_layernorm.weight")), None)
        if weight is None or node.input[0] == "inputs_embeds":
            continue
        name = f"layer_{weight.split('.')[1]}"
        model.graph.node.append(helper.make_node("Identity", [node.input[0]], [name], name))
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["S", width]))
        config["outputs"].append({"name": name, "dtype": "float32", "shape": ["S", width]})
    onnx.save(model, target / "model.onnx")
    config["graph_sha256"] = config.setdefault("checksums", {})["model.onnx"] = sha256(target / "model.onnx")
    config["files"]["model.onnx"] = (target / "model.onnx").stat().st_size
    (target / "config.json").write_text(json.dumps(config))
    return target


# ---- command line -----------------------------------------------------------------------------------------------------
def table(report: dict[str, Any]) -> str:
    lines = []
    for name in DECODERS:
        r = report[name]
        lines.append(f"{name:15} top-1 {r['top1']:.3f}   KL {r['kl']:.4g} nat   cosine {r['cosine']:.6f}   ({r['steps']} steps)")
        lines += [f"  into layer {i + 1:<4} cosine {c:.6f}" for i, c in enumerate(r["layer_cosine"])]
    if "code_predictor" in report:
        r = report["code_predictor"]
        lines.append(f"code_predictor  code 1 {r['code_1']:.3f}   codes 1-15 {r['codes_1_to_15']:.3f}   ({r['frames']} frames)")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=f"python -m {__spec__.name}",
        description=__doc__.replace("python -m offline", f"python -m {__package__}"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("reference", type=Path, metavar="REFERENCE", help="engines that answer")
    parser.add_argument("other", type=Path, metavar="OTHER", help="engines that are compared with them")
    parser.add_argument("--inputFile", type=Path, help="requests as for offline.infer (default: one question)")
    parser.add_argument("--outputFile", type=Path, help="also write the report as JSON")
    parser.add_argument("--tokens", type=int, default=64, help="reply tokens per request (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=64, help="codec frames per request (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads per engine (default: every core)")
    args = parser.parse_args(argv)
    try:
        asked = read_requests(args.inputFile, True, False)[0] if args.inputFile else [Request(QUESTION)]
        requests = [
            Request(
                r.messages,
                max_generate_length=args.tokens,
                max_audio_length=args.frames,
                streaming=False,
                temperature=0,
                talker_temperature=0,
                speaker=r.speaker,
            )
            for r in asked
        ]
        with open_probed(args.reference, args.threads) as reference, open_probed(args.other, args.threads) as other:
            report = compare(reference, other, requests)
    except OmniError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    print(table(report))
    if args.outputFile:
        with atomic_file(args.outputFile) as temporary:
            temporary.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
