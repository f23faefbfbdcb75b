"""What does a KV cache of 8 bits cost? Of the trained demo model, with keys and values rounded in CPU engines.

    python -m bench.kv_cache_bits REQUESTS.json [--model demo/model]

REQUESTS.json is a request file, of `python -m training.samples` say. The float32 engines answer it; every input of Thinker and
Talker is then given to copies whose keys and values pass through ONNX's own QuantizeLinear before the cache keeps them. So
nothing here knows the kernels that round on a GPU. Prints a markdown table.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from offline.compare import DECODERS, compare
from offline.inference.request_file import read_requests
from offline.outputs.graph_folder import sha256
from offline.quantization.spy import spy
from omni_ros.pipeline.pipeline import ENGINES, Pipeline
from omni_ros.pipeline.request import Request

LARGEST = 448.0  # of E4M3
FORMS = {  # name -> what is rounded, and how
    "float16": ("kv", "float16"),
    "FP8, scale 1 (`--kv_cache_quantization fp8`)": ("kv", "fp8"),
    "FP8, keys alone": ("k", "fp8"),
    "FP8, values alone": ("v", "fp8"),
    "FP8, a scale for each layer, largest value / 448": ("kv", "layer"),
    "FP8, a scale for each row and head, largest value / 448": ("kv", "row"),
}


class Rounded:
    """A decoder's graph while nodes go in front of its caches."""

    def __init__(self, model: onnx.ModelProto):
        self.graph, self.nodes, self.constants = model.graph, [], []

    def op(self, kind: str, inputs: list[str], output: str, **attributes) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def const(self, value: np.ndarray, name: str) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def codes(self, x: str, scale: str) -> str:
        zero = f"{x}.zero"
        self.constants.append(TensorProto(name=zero, data_type=TensorProto.FLOAT8E4M3FN, raw_data=b"\0"))
        return self.op("DequantizeLinear", [self.op("QuantizeLinear", [x, scale, zero], f"{x}.codes"), scale], f"{x}.rounded")

    def round(self, x: str, how: str, scale: float, head_dim: int) -> str:
        """x [1, S, kv_heads * head_dim], as it is after `how`; `scale` is for "fp8"."""
        if how == "float16":
            half = self.op("Cast", [x], f"{x}.half", to=TensorProto.FLOAT16)
            return self.op("Cast", [half], f"{x}.rounded", to=TensorProto.FLOAT)
        if how == "fp8":
            return self.codes(x, self.const(np.array(scale, np.float32), f"{x}.scale"))
        heads = self.op("Reshape", [x, self.const(np.array([0, 0, -1, head_dim]), f"{x}.by_head")], f"{x}.heads")
        most = self.op("ReduceMax", [self.op("Abs", [heads], f"{x}.size"), self.const(np.array([3]), f"{x}.axis")], f"{x}.most")
        floor = self.op("Max", [most, self.const(np.array(1e-6, np.float32), f"{x}.least")], f"{x}.floor")
        unit = self.op("Div", [floor, self.const(np.array(LARGEST, np.float32), f"{x}.448")], f"{x}.unit")
        scaled = self.op("Div", [heads, unit], f"{x}.scaled")
        one = self.const(np.array(1, np.float32), f"{x}.one")
        back = self.op("Mul", [self.codes(scaled, one), unit], f"{x}.back")
        return self.op("Reshape", [back, self.const(np.array([0, 0, -1]), f"{x}.flat")], f"{x}.as_before")


def rounded(source: Path, target: Path, what: str, how: str, scales: dict[str, float]) -> Path:
    """A copy of a decoder's engine whose cache keeps rounded keys ("k" in `what`) and values ("v"). With `how` "look" it keeps
    them as they are and returns their largest of each run. `scales` of "fp8": "k_attention_0" ... -> scale, where it is not 1."""
    shutil.copytree(source, target)
    model, config = onnx.load(target / "model.onnx", load_external_data=False), json.loads((target / "config.json").read_text())
    work = Rounded(model)
    for node in model.graph.node:
        for i in (1, 2) if node.op_type == "GroupQueryAttention" else ():
            key = f"{'kv'[i - 1]}_{node.output[0]}"
            if how == "look":
                size = work.op("ReduceMax", [work.op("Abs", [node.input[i]], f"{key}.size")], key, keepdims=0)
                model.graph.output.append(helper.make_tensor_value_info(size, TensorProto.FLOAT, []))
                config["outputs"].append({"name": key, "dtype": "float32", "shape": []})
            elif "kv"[i - 1] in what:
                node.input[i] = work.round(node.input[i], how, scales.get(key, 1.0), config["decoder"]["head_dim"])
        work.nodes.append(node)
    nodes = work.nodes
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(work.constants)
    onnx.save(model, target / "model.onnx")
    config["graph_sha256"] = config["checksums"]["model.onnx"] = sha256(target / "model.onnx")
    config["files"]["model.onnx"] = (target / "model.onnx").stat().st_size
    config.pop("self_check")  # of the engine that rounds nothing
    (target / "config.json").write_text(json.dumps(config))
    return target


def run(module: str, *arguments: object) -> None:
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def with_decoders(engines: Path, work: Path, name: str, what: str, how: str, scales: dict[str, dict[str, float]]) -> Pipeline:
    folders = {engine: engines / engine for engine in ENGINES}
    for decoder in DECODERS:
        folders[decoder] = rounded(engines / decoder, work / name / decoder, what, how, scales.get(decoder, {}))
    return Pipeline.open(engines, folders=folders)


def main() -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.split("\n")[0])
    parser.add_argument("requests", type=Path, metavar="REQUESTS.json")
    parser.add_argument("--model", type=Path, default=Path("demo/model"))
    args = parser.parse_args()
    asked = read_requests(args.requests, True, False)[0]
    greedy = dict(max_generate_length=64, max_audio_length=64, streaming=False, temperature=0, talker_temperature=0)
    requests = [Request(r.messages, **greedy) for r in asked]
    with tempfile.TemporaryDirectory() as folder:
        work, engines = Path(folder), Path(folder) / "engines"
        run("offline.export_onnx", args.model, work / "onnx", "--dtype", "float32")
        run("offline.build_engines", work / "onnx", engines)
        looking = with_decoders(engines, work, "look", "kv", "look", {})
        with closing(looking), spy(looking) as calls:
            for request in requests:
                for _ in looking.generate(request):
                    continue
        seen = {d: [c.outputs for c in calls if c.engine == d] for d in DECODERS}
        largest = {d: {k: max(float(o[k]) for o in outs) for k in outs[0] if k[:2] in ("k_", "v_")} for d, outs in seen.items()}
        for decoder, values in largest.items():
            print(decoder, {key: round(value, 2) for key, value in values.items()}, file=sys.stderr)
        print(
            "| keys and values | Thinker top-1 | KL (nat) | cosine | Talker top-1 | KL (nat) | cosine |\n|---" + "|--:" * 6 + "|"
        )
        for i, (name, (what, how)) in enumerate(FORMS.items()):
            layer = {d: {k: v / LARGEST for k, v in values.items()} for d, values in largest.items()} if how == "layer" else {}
            pair = Pipeline.open(engines), with_decoders(engines, work, str(i), what, how.replace("layer", "fp8"), layer)
            with closing(pair[0]) as reference, closing(pair[1]) as other:
                report = compare(reference, other, requests)
            cells = [f"{r['top1']:.1%} | {r['kl']:.1e} | {r['cosine']:.6f}" for r in (report[d] for d in DECODERS)]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
