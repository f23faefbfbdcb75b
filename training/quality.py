"""What each form of the shipped model's engines costs: exact answers, words misheard, and how far logits move from float32.

    python -m training.quality [--work quality_output] [--items 100] [--voice 60] [--device cuda] [--only float32 int4 ...]

Builds every form from demo/model (quantised ones are calibrated with training.samples), asks each the same held-out questions
(training.evaluate), gives each the inputs of the float32 engines (offline.compare), and lets Whisper read its speech
(training.voice.listen). What is done stays in the work folder and is not done again; table.md there is the whole table.
Needs the synthesisers that training/README.md names and, for the voice, the extra `listen`.
"""

import argparse
import importlib.util
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from omni_ros.errors import InputError
from omni_ros.pipeline.pipeline import Pipeline
from training import evaluate, samples

MODEL = Path(__file__).parents[1] / "demo" / "model"
SEED = 11
SYNTHESISERS = ("espeak-ng", "flite", "text2wave")


@dataclass(frozen=True)
class Calibration:
    audio: int
    images: int
    text: int

    @property
    def name(self) -> str:
        return f"{self.audio}-{self.images}-{self.text}"


FULL = Calibration(150, 150, 200)  # the default counts of offline.quantize: less than a minute for this model on two cores
FP8_CODE_PREDICTOR = ("--cp_quantization", "fp8")
SHORT = ("--reply_tokens", "12", "--codec_frames", "12")  # answers of this model are no longer


@dataclass(frozen=True)
class Form:
    """How engines are made: the checkpoint as it is or quantised, and the options of export and build."""

    name: str
    calibration: Calibration | None = None
    export: tuple[str, ...] = ()
    build: tuple[str, ...] = ()
    quantize: tuple[str, ...] = ()


def forms(device: str) -> list[Form]:
    """Those of a device. The first is what the others are compared with."""
    float32 = Form("float32", export=("--dtype", "float32"))
    if device == "cuda":
        cuda = ("--device", "cuda")
        fp8_cache = (*cuda, "--kv_cache_quantization", "fp8")
        return [
            float32,
            Form("float16, GPU", build=cuda),
            Form("float16, FP8 KV cache, GPU", build=fp8_cache),
            Form("NVFP4 weights, GPU", FULL, build=cuda),
            Form("NVFP4 weights, FP8 CodePredictor, GPU", FULL, build=cuda, quantize=FP8_CODE_PREDICTOR),
            Form("NVFP4 weights, FP8 KV cache, GPU", FULL, build=fp8_cache),
        ]
    both = ("--activations", "nvfp4")
    return [
        float32,
        Form("int4", build=("--weights", "int4")),
        Form("NVFP4 weights", FULL),
        Form("NVFP4 weights, FP8 CodePredictor", FULL, quantize=FP8_CODE_PREDICTOR),
        Form("NVFP4 weights and activations", FULL, both),
        Form("... 10 of each kind", Calibration(10, 10, 10), both),
        Form("... 2 of each kind", Calibration(2, 2, 2), both),
        Form("... no pictures", Calibration(150, 0, 200), both),
        Form("... no sound", Calibration(0, 150, 200), both),
        Form("... text only", Calibration(0, 0, 200), both),
    ]


def run(module: str, *arguments: str | Path) -> None:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    print("$", " ".join(command[1:]), flush=True)
    subprocess.run(command, check=True)


def once(path: Path, make: Callable[[Path], None]) -> Path:
    """`path`, made beside itself first: a run that is stopped leaves nothing that looks whole."""
    if not path.exists():
        partial = path.with_name(path.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        make(partial)
        partial.rename(path)
    return path


def drawn(folder: Path, audio: int, images: int, text: int, seed: int) -> Path:
    """Samples of the domain in `folder`; what names them, requests.json, is written last."""
    if not (folder / "requests.json").exists():
        samples.write(folder, audio, images, text, seed)
    return folder


def quantised(work: Path, calibration: Calibration, extra: tuple[str, ...]) -> Path:
    sounds = drawn(work / f"samples-{calibration.name}", **vars(calibration), seed=3)
    counts = zip(("audio", "image", "text"), vars(calibration).values())
    talker = [word for kind, n in counts for word in (f"--talker_num_{kind}", str(n))]
    options = ("--calibration_dir", sounds, *talker, *SHORT, *extra, "--single_folder")
    return once(
        work / "-".join(["nvfp4", calibration.name, *extra[1:]]),
        lambda out: run("offline.quantize", "--model_dir", MODEL, "--output_dir", out, *options),
    )


def engines(work: Path, form: Form) -> Path:
    folder = work / form.name.replace(", ", "-").replace(" ", "_").strip("._")

    def make(out: Path) -> None:
        checkpoint = MODEL if form.calibration is None else quantised(work, form.calibration, form.quantize)
        run("offline.export_onnx", checkpoint, out / "onnx", *form.export)
        run("offline.build_engines", out / "onnx", out / "engines", *form.build)

    return once(folder, make) / "engines"


def misheard(pipeline: Pipeline, items: int) -> dict:
    """Words that Whisper reads otherwise than they were written, of whole turns typed, Talker greedy."""
    from training.voice import listen

    rnd, listener = random.Random(SEED), listen.Listener()
    draw, _ = evaluate.rows(rnd)["typed"]
    wrong = words = 0
    for i in range(items):
        item = draw()
        end, pcm = listen.turn(pipeline, evaluate.messages(rnd, item, None), 0.0, i)
        if item["tools"]:
            continue  # calls are not words
        wrong += listen.errors(listen.words(end.text), listen.words(listener(pcm)))
        words += len(listen.words(end.text))
    return {"words": words, "wrong": wrong}


def exact(pipeline: Pipeline, name: str, items: int) -> int:
    """Right answers of a row of training.evaluate."""
    rnd = random.Random(f"{SEED} {name}")
    draw, speak = evaluate.rows(rnd)[name]
    right = 0
    for _ in range(items):
        item = draw()
        right += evaluate.answer(pipeline, evaluate.messages(rnd, item, speak)) == item["answer"]
    return right


def measure(work: Path, form: Form, reference: Path, args: argparse.Namespace) -> dict:
    folder = engines(work, form)
    file = folder.parent / f"quality-{args.items}-{args.voice}.json"
    if file.exists():
        return json.loads(file.read_text())
    row: dict = {"items": args.items}
    if folder != reference:
        requests = drawn(work / "questions", 16, 16, 8, seed=21) / "requests.json"
        run("offline.compare", reference, folder, "--inputFile", requests, "--outputFile", folder.parent / "compare.json")
        row["compare"] = json.loads((folder.parent / "compare.json").read_text())
    pipeline = Pipeline.open(folder, args.threads)
    row["typed"], row["spoken"] = (exact(pipeline, name, args.items) for name in ("typed", "spoken"))
    if args.voice and importlib.util.find_spec("faster_whisper"):
        row["voice"] = misheard(pipeline, args.voice)
    pipeline.close()
    file.write_text(json.dumps(row, indent=1) + "\n")
    return row


def table(rows: dict[str, dict]) -> str:
    lines = [
        "| | typed | spoken | words misheard | Thinker top-1 | KL (nat) | Talker top-1 | KL (nat) | codes 1-15 equal |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in rows.items():
        voice, cells = row.get("voice"), [f"{row[kind]} of {row['items']}" for kind in ("typed", "spoken")]
        cells.append(f"{voice['wrong']} of {voice['words']}" if voice else "")
        if compared := row.get("compare"):
            for part in ("thinker", "talker"):
                cells += [f"{100 * compared[part]['top1']:.1f} %", f"{compared[part]['kl']:.1e}"]
            cells.append(f"{100 * compared['code_predictor']['codes_1_to_15']:.1f} %")
        else:
            cells += ["", "", "", "", ""]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("quality_output"))
    parser.add_argument("--items", type=int, default=100, help="typed, and as many spoken")
    parser.add_argument("--voice", type=int, default=60, help="answers that Whisper listens to")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", nargs="*", help="names of forms")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if missing := [name for name in SYNTHESISERS if not shutil.which(name)]:
        raise InputError(f"{', '.join(missing)} cannot be found: training/README.md says what to install")
    everything = forms(args.device)
    if unknown := set(args.only or ()) - {form.name for form in everything}:
        raise InputError(f"--only {unknown}: there are {[form.name for form in everything]}")
    reference, rows = engines(args.work, everything[0]), {}
    for form in everything:
        if not args.only or form.name in args.only:
            rows[form.name] = measure(args.work, form, reference, args)
            (args.work / "table.md").write_text(table(rows))
            print(table(rows), flush=True)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
