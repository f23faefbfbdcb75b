"""The small checkpoint and its engines, made once with the product's command lines and kept in the output folder."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def prepare(output: Path) -> None:
    """Make output/{checkpoint,engines,engines_int4} unless that was done with the same code before."""
    stamp, identity = output / "made_by.sha256", _identity()
    if stamp.is_file() and stamp.read_text() == identity:
        return
    stamp.unlink(missing_ok=True)
    shutil.rmtree(output / "large_checkpoint", ignore_errors=True)  # of export_memory
    print(f"making a checkpoint and engines in {output}", file=sys.stderr, flush=True)
    python("-m", "offline.make_checkpoint", "--output", output / "checkpoint", "--size", "small", "--force")
    python("-m", "offline.export_onnx", output / "checkpoint", output / "onnx", "--dtype", "float32")
    python("-m", "offline.build_engines", output / "onnx", output / "engines")
    python("-m", "offline.build_engines", output / "onnx", output / "engines_int4", "--weights", "int4")
    stamp.write_text(identity)


def _identity() -> str:
    sources = sorted((ROOT / "offline").rglob("*.py"))
    return hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()


def python(*arguments: str | Path) -> str:
    """What `python arguments` printed; RuntimeError with what it complained about."""
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, text=True, capture_output=True)
    if done.returncode:
        command = " ".join(map(str, arguments))
        raise RuntimeError(f"python {command} exited with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout
