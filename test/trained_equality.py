"""Do engines and transformers agree on trained weights? Where they do not: is it rounding?

    python test/trained_equality.py OUT.json [--items 40]

Turns of demo/model, greedy, float32, with speech: the fixed questions and, where the synthesisers of training/README.md are
installed, others that are spoken and typed; half of the pictures have a size that the processor must change. Reference:
transformers with its Pillow picture processor, as ours; its default one (torchvision) beside it.

At the first code or token that differs, the referee is transformers in float64: a difference is rounding when its margin
between the two candidates is not larger than what float32 does to the logits of that very step.
"""

import argparse
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import oracle
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as modeling

from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.request import Finished, Request

sys.path.insert(0, str(Path(__file__).parents[1]))
from training import evaluate  # noqa: E402
from training.fixed_questions import FOLDER, PICTURES, picture  # noqa: E402

MODEL = Path(__file__).parents[1] / "demo" / "model"
LONGEST = {"max_generate_length": 60, "max_audio_length": 200}
ROUNDING = 4.0  # times what float32 changes at that step: both sides round, each in its own order


@dataclass
class Heard:
    """What transformers made of a turn, and the logits it chose from."""

    reply: oracle.Reply
    tokens: list[np.ndarray]  # of each step, [vocabulary]
    codes: list[list[np.ndarray]]  # [16][frames], each [codebook]


class _Double:
    """The module torch, where float32 is float64: transformers computes norms and softmax in what it calls float32."""

    float32 = float = torch.float64

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)


@contextlib.contextmanager
def in_float64(model: torch.nn.Module) -> Iterator[None]:
    single = torch.Tensor.float
    modeling.torch, torch.Tensor.float = _Double(), torch.Tensor.double
    model.double()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        modeling.torch, torch.Tensor.float = torch, single
        torch.set_default_dtype(torch.float32)
        model.float()


class Reference:
    def __init__(self, checkpoint: Path):
        self.oracle = oracle.Oracle(checkpoint)
        self.default = self.oracle.processor.image_processor
        self.pillow = Qwen2VLImageProcessorPil.from_pretrained(checkpoint)

    def hear(self, messages: list[dict], processor: object) -> Heard:
        model = self.oracle.model
        self.oracle.processor.image_processor = processor
        heads = [model.thinker.lm_head, model.talker.codec_head, *model.talker.code_predictor.lm_head]
        rows: list[list[np.ndarray]] = [[] for _ in heads]
        hooks = [
            head.register_forward_hook(lambda _, __, out, row=row: row.append(out[0, -1].double().numpy()))
            for head, row in zip(heads, rows)
        ]
        try:
            reply = self.oracle.generate(messages, **LONGEST)
        finally:
            for hook in hooks:
                hook.remove()
        steps = len(reply.token_ids)  # the Thinker runs twice, the second time for the speech
        return Heard(reply, rows[0][-steps:], rows[1:])

    def in_double(self, messages: list[dict]) -> Heard:
        with in_float64(self.oracle.model):
            return self.hear(messages, self.pillow)


def first_difference(a: oracle.Reply, b: oracle.Reply) -> tuple[str, int, int, int, int] | None:
    """What differs first: (token or code, step, codebook, a's choice, b's); None where nothing does."""
    for step, (x, y) in enumerate(zip(a.token_ids, b.token_ids)):
        if x != y:
            return "token", step, 0, x, y
    frames = min(a.codes.shape[1], b.codes.shape[1])
    different = np.argwhere((a.codes[:, :frames] != b.codes[:, :frames]).T)
    if len(different):
        frame, book = different[0].tolist()
        return "code", frame, book, int(a.codes[book, frame]), int(b.codes[book, frame])
    if a.codes.shape[1] == b.codes.shape[1]:
        return None
    return "code", frames, 0, *(int(r.codes[0, frames]) if r.codes.shape[1] > frames else EOS for r in (a, b))


EOS = -1  # the codec's end: see judge()


def judge(where: tuple[str, int, int, int, int], single: Heard, double: Heard, eos: int) -> dict:
    """Margins of the two choices at the first difference, and whether rounding explains it."""
    kind, step, book, a, b = where
    of = [heard.tokens if kind == "token" else heard.codes[book] for heard in (single, double)]
    if len(of[1]) <= step:
        return {"what": kind, "step": step, "codebook": book, "rounding": False, "why": "float64 ended earlier"}
    x, y = (logits[step] for logits in of)
    a, b = (eos if choice == EOS else choice for choice in (a, b))
    likely = y > y.max() - 20  # what is never chosen does not matter
    error = float(np.abs(x - y)[likely].max())
    return {
        "what": kind,
        "step": step,
        "codebook": book,
        "margin float32": float(x[a] - x[b]),
        "margin float64": float(y[a] - y[b]),
        "float32 error": error,
        "rounding": bool(abs(y[a] - y[b]) <= ROUNDING * error),
    }


def resized(rnd: random.Random, image: np.ndarray) -> np.ndarray:
    """A size that the processor has to change."""
    size = rnd.randrange(300, 700), rnd.randrange(260, 520)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def turns(items: int) -> Iterator[tuple[str, list[dict]]]:
    rnd = random.Random(5)
    for i, (_, question, _, _, _, _) in enumerate(PICTURES):
        for said in ({"type": "text", "text": question}, {"type": "audio", "audio": evaluate_sound(i)}):
            image = picture(i)
            if image is not None and i % 2:
                image = resized(rnd, image)
            yield f"fixed {i} {said['type']}", [{"role": "user", "content": [*as_part(image), said]}]
    if not all(map(shutil.which, ("espeak-ng", "flite", "text2wave"))):
        print("espeak-ng, flite or festival is not installed: only the fixed questions", file=sys.stderr)
        return
    draw, _ = evaluate.rows(rnd)["typed"]
    for i in range(items):
        item = draw()
        chat = evaluate.messages(rnd, item, (lambda q: evaluate.said(rnd, q)) if i % 2 else None)
        parts = chat[-1]["content"]
        if i % 4 >= 2 and parts[0]["type"] == "image":
            parts[0]["image"] = resized(rnd, parts[0]["image"])
        for message in chat:
            if isinstance(message["content"], str):
                message["content"] = [{"type": "text", "text": message["content"]}]
        yield f"{item['kind']} {i} {parts[-1]['type']}", chat


def as_part(image: np.ndarray | None) -> list[dict]:
    return [] if image is None else [{"type": "image", "image": image}]


def evaluate_sound(i: int) -> np.ndarray:
    from omni_ros.preprocess.audio import load_audio

    return load_audio(FOLDER / f"{i:02}.flac", 30)


def ours(pipeline: Pipeline, messages: list[dict]) -> oracle.Reply:
    request = Request(messages, temperature=0, talker_temperature=0, seed=1, **LONGEST)
    end = next(e for e in pipeline.generate(request) if isinstance(e, Finished))
    return oracle.Reply(end.token_ids, end.codes, None)


def build(folder: Path) -> Path:
    """float32 engines of the shipped model."""
    for module, *arguments in (
        ("export_onnx", "--dtype", "float32", MODEL, folder / "onnx"),
        ("build_engines", folder / "onnx", folder / "engines"),
    ):
        subprocess.run([sys.executable, "-m", f"offline.{module}", *arguments], check=True)
    return folder / "engines"


def compare(pipeline: Pipeline, reference: Reference, messages: list[dict]) -> dict:
    """One turn: does it differ, and why; and how much transformers' two picture processors do."""
    eos = pipeline.models.speak().talker.eos
    mine, single = ours(pipeline, messages), reference.hear(messages, reference.pillow)
    row: dict = {"tokens equal": mine.token_ids == single.reply.token_ids}
    row["codes equal"] = row["tokens equal"] and np.array_equal(mine.codes, single.reply.codes)
    row["frames"] = int(single.reply.codes.shape[1])
    if (where := first_difference(single.reply, mine)) is not None:
        row["difference"] = judge(where, single, reference.in_double(messages), eos)
        differing = mine.codes[:, : row["frames"]] != single.reply.codes[:, : mine.codes.shape[1]]
        row["codes that differ"] = int(differing.sum())
    if any(part["type"] == "image" for part in messages[-1]["content"]):
        other = reference.hear(messages, reference.default)
        row["torchvision"] = {
            "first logits differ by": float(np.abs(other.tokens[0] - single.tokens[0]).max()),
            "tokens equal": other.reply.token_ids == single.reply.token_ids,
            "codes equal": np.array_equal(other.reply.codes, single.reply.codes),
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--items", type=int, default=40, help="beside the 24 fixed questions")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pipeline, reference, rows = Pipeline.open(build(Path(folder)), 2), Reference(MODEL), {}
        for name, messages in turns(args.items):
            rows[name] = compare(pipeline, reference, messages)
            print(name, json.dumps(rows[name]), flush=True)
            args.out.write_text(json.dumps(rows, indent=1) + "\n")
    count = len(rows)
    print(
        f"{count} turns: tokens equal in {sum(r['tokens equal'] for r in rows.values())}, codes in "
        f"{sum(r['codes equal'] for r in rows.values())}; rounding explains "
        f"{sum(r['difference']['rounding'] for r in rows.values() if 'difference' in r)} of "
        f"{sum('difference' in r for r in rows.values())} differences"
    )


if __name__ == "__main__":
    main()
