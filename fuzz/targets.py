"""What is attacked: for each target how a case is made from a seed, and how it is tried.

A case is the content of one file. Trying it returns when the code took it, and raises what the code raised: an OmniError
is the right answer to nonsense, anything else is a finding.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fuzz import tool_calls
from fuzz.bombs import ROWS, SECONDS, VISION
from fuzz.mutate import TEXTS, VALUES, mutate_bytes, mutate_json, mutate_template
from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.request import AudioChunk, Finished, Request
from omni_ros.pipeline.template_check import check_template
from omni_ros.preprocess.audio import load_audio, load_features, log_mel
from omni_ros.preprocess.image import image_patches
from omni_ros.preprocess.video import load_video, video_patches

ROOT = Path(__file__).parents[1]
SEEDS = ROOT / "fuzz" / "seeds"


@dataclass(frozen=True)
class Target:
    make: Callable[[random.Random], bytes]
    attempt: Callable[[Path], None]
    needs_engines: bool = False


# ---- media files ----------------------------------------------------------------------------------------------------
@cache
def seeds(kind: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((SEEDS / kind).iterdir())]


def media_case(kind: str) -> Callable[[random.Random], bytes]:
    return lambda rng: mutate_bytes(rng, rng.choice(seeds(kind)), seeds(kind))


def try_sound(path: Path) -> None:
    if b"input_features" in path.read_bytes()[:4096]:
        load_features(path, SECONDS)
    else:
        assert np.isfinite(log_mel(load_audio(path, SECONDS))).all()


def try_picture(path: Path) -> None:
    assert np.isfinite(image_patches(path, VISION, 307200, ROWS)[0]).all()


def try_video(path: Path) -> None:
    video_patches(load_video(path, 2.0, VISION, ROWS), 2.0, VISION, ROWS)


# ---- templates ------------------------------------------------------------------------------------------------------
def template_case(rng: random.Random) -> bytes:
    source = rng.choice([seed.decode() for seed in seeds("templates")])
    return mutate_template(rng, source).encode("utf-8", "surrogatepass")


def try_template(path: Path) -> None:
    check_template(path.read_bytes().decode("utf-8", "surrogatepass"), str(path), ["<|im_start|>"], timeout=1.0)


# ---- engines and requests -------------------------------------------------------------------------------------------
def engines() -> Path:
    """Engines of a random checkpoint, made when they are first asked for and kept for as long as the code stays."""
    version = max(path.stat().st_mtime_ns for top in ("omni_ros", "offline") for path in (ROOT / top).rglob("*.py"))
    root = Path(tempfile.gettempdir()) / f"omni_ros_fuzz_{os.getuid()}"
    folder = root / f"{zlib.crc32(bytes(ROOT))}_{version}"
    if not folder.exists():
        root.mkdir(mode=0o700, exist_ok=True)
        for old in root.iterdir():
            if old.stat().st_mtime < time.time() - 86400:  # nobody else is at it
                shutil.rmtree(old, ignore_errors=True)
        made = Path(tempfile.mkdtemp(dir=root))
        checkpoint, onnx = made / "checkpoint", made / "onnx"
        for command in (
            ["offline.make_checkpoint", "--output", checkpoint, "--size", "tiny"],
            ["offline.export_onnx", checkpoint, onnx, "--dtype", "float32"],
            ["offline.build_engines", onnx, made / "engines", "--backend", "onnxruntime"],
        ):
            done = subprocess.run(
                [sys.executable, "-m", *map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise RuntimeError(f"{command[0]} failed:\n{done.stderr}")
        try:
            made.rename(folder)
        except OSError:  # another process was sooner
            shutil.rmtree(made)
    return folder / "engines"


def turn(pipeline: Pipeline, **request: Any) -> np.ndarray:
    """A whole turn's PCM; it must end, and its numbers must be numbers."""
    request = {"max_generate_length": 4, "max_audio_length": 3, **request}
    events = list(pipeline.generate(Request(**request)))
    assert isinstance(events[-1], Finished), "the turn did not finish"
    pcm = np.concatenate([np.zeros(0, np.float32), *(e.pcm for e in events if isinstance(e, AudioChunk))])
    assert np.isfinite(pcm).all(), "speech that is not finite"
    return pcm


GOOD: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "audio", "audio": {"shape": [3000], "dtype": "float32", "fill": 0.1}},
                {"type": "image", "image": {"shape": [64, 64, 3], "dtype": "uint8", "fill": 90}, "max_pixels": 4096},
                {"type": "video", "video": {"shape": [2, 32, 32, 3], "dtype": "uint8", "fill": 30}, "fps": 2.0},
                {"type": "image", "image": "pictures/exif.jpg"},
                {"type": "audio", "audio": "sounds/mono.mp3"},
                {"type": "video", "video": "videos/mpeg4.mp4"},
                {"type": "text", "text": "So?"},
            ],
        },
        {"role": "assistant", "content": "This."},
        {"role": "user", "content": "And now?"},
    ],
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.8,
    "talker_temperature": 0.9,
    "talker_top_k": 10,
    "talker_top_p": 1.0,
    "repetition_penalty": 1.0,
    "seed": 1,
    "first_chunk_frames": 1,
    "chunk_frames": 8,
    "streaming": True,
}
DTYPES = ("float32", "float64", "float16", "int16", "uint8", "int64", "bool", "complex64", "U4", "object")


def request_case(rng: random.Random) -> bytes:
    """Seven of ten are well formed, with unusual words, media or parameters; the others are damaged anywhere."""
    request = json.loads(json.dumps(GOOD))
    content = request["messages"][1]["content"]
    for part in content:
        array = part[part["type"]]
        if isinstance(array, dict) and rng.random() < 0.2:
            array["shape"] = [rng.choice((0, 1, 2, 3, 31, 64, 201, 1000)) for _ in array["shape"]]
            array["shape"][-1] = rng.choice((3, array["shape"][-1]))
            array["dtype"] = rng.choice((array["dtype"], array["dtype"], *DTYPES))
            array["fill"] = rng.choice((0, 1, -1, 1e30, float("nan"), float("inf"), 255))
        elif part["type"] == "text" and rng.random() < 0.7:
            part["text"] = rng.choice(TEXTS)
    request["messages"][1]["content"] = rng.sample(content, rng.randrange(1, 5))
    if rng.random() < 0.3:
        request = mutate_json(rng, request)
    elif rng.random() < 0.5:
        name = rng.choice([key for key in request if key != "messages"])
        request[name] = rng.choice((*VALUES, 1e-4, 1e4, 10, 100))
    return json.dumps(request).encode()


def materialise(value: Any) -> Any:
    """{"shape", "dtype", "fill"} -> array; paths count from the seeds."""
    if isinstance(value, dict):
        if set(value) == {"shape", "dtype", "fill"}:
            try:
                with np.errstate(all="ignore"):
                    fill = np.asarray(value["fill"]).astype(value["dtype"])
                if np.prod(value["shape"], dtype=np.float64) * fill.itemsize > 32e6:  # what is measured is not this array
                    return None
                return np.full(value["shape"], fill, fill.dtype)
            except (TypeError, ValueError, OverflowError):
                return None
        return {key: materialise(item) for key, item in value.items()}
    if isinstance(value, list):
        return [materialise(item) for item in value]
    return str(SEEDS / value) if isinstance(value, str) and value.split("/")[0] in ("sounds", "pictures", "videos") else value


OPENED: list[tuple[Pipeline, np.ndarray]] = []  # the one that all requests of this process go to, and its good answer
GREEDY = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "talker_temperature": 0}


def try_request(path: Path) -> None:
    if not OPENED:
        pipeline = Pipeline.open(engines(), threads=1)
        OPENED.append((pipeline, turn(pipeline, **GREEDY)))
    pipeline, answer = OPENED[0]
    request = materialise(json.loads(path.read_text()))
    if not isinstance(request, dict) or not set(request) <= set(GOOD):
        return  # not even a Request
    try:
        turn(pipeline, **{"messages": None, **request})
    finally:
        if not np.array_equal(turn(pipeline, **GREEDY), answer):
            raise AssertionError("after this request the pipeline answers another one differently")


FILES = ("config.json", "tokenizer.json", "processor_config.json", "chat_template.jinja", "generation_config.json", "model.onnx")
FILES = (*FILES, "model.onnx.data", "embedding.safetensors", "self_check.safetensors", "hidden_projection.safetensors")
FOLDERS = ("thinker", "talker", "code_predictor", "code2wav", "multimodal/audio", "multimodal/visual")


def folder_case(rng: random.Random) -> bytes:
    """One to three changes to a folder of engines, as JSON."""
    changes = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        file = f"{rng.choice(FOLDERS)}/{rng.choice(FILES + ('config.json',) * 4)}"
        kind = rng.choice(
            ("json", "json", "json", "bytes", "bytes", "cut", "delete", "empty", "folder", "fifo", "link", "copy", "text")
        )
        changes.append(
            {"file": file, "kind": kind, "seed": rng.randrange(2**32), "other": f"{rng.choice(FOLDERS)}/{rng.choice(FILES)}"}
        )
    return json.dumps(changes).encode()


def change(folder: Path, file: str, kind: str, seed: int, other: str) -> None:
    """Apply one of them. Files are hard links to the originals, so they are replaced, never written into."""
    path, rng = folder / file, random.Random(seed)
    if not path.is_file() or not path.exists():
        return
    content = path.read_bytes()
    path.unlink()
    try:
        value = json.loads(content)
    except ValueError:  # not JSON, or no longer
        value = None
    if kind == "json" and value is not None:
        path.write_text(json.dumps(mutate_json(rng, value, 1)))
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(rng.choice(("nowhere", path.name, "/dev/zero", "/etc/passwd")))
    elif kind == "copy" and (folder / other).is_file():
        shutil.copyfile(folder / other, path)
    elif kind == "text":
        path.write_text(str(rng.choice(VALUES)), errors="replace")
    elif kind == "cut":
        path.write_bytes(content[: rng.randrange(len(content) + 1)])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind != "delete":
        path.write_bytes(mutate_bytes(rng, content, [content]))


def try_folder(path: Path) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "engines"
        shutil.copytree(engines(), folder, copy_function=os.link)
        for one in json.loads(path.read_text()):
            change(folder, **one)
        pipeline = Pipeline.open(folder, threads=1)
        try:
            turn(pipeline, **materialise({"messages": GOOD["messages"][1:2]}))
        finally:
            pipeline.close()


TARGETS = {
    "sounds": Target(media_case("sounds"), try_sound),
    "pictures": Target(media_case("pictures"), try_picture),
    "videos": Target(media_case("videos"), try_video),
    "templates": Target(template_case, try_template),
    "tool_calls": Target(tool_calls.case, tool_calls.attempt),
    "requests": Target(request_case, try_request, needs_engines=True),
    "folders": Target(folder_case, try_folder, needs_engines=True),
}
