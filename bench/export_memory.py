"""Peak memory of an export: it must follow the largest tensor, not the model."""

import shutil
from pathlib import Path

from bench.models import python
from bench.report import Part, Row
from offline.checkpoints.checkpoint import Checkpoint

LAYERS = 80  # of the Thinker: 2.2 GB
METHOD = f"""\
`offline.export_onnx` of a random checkpoint with {LAYERS} Thinker layers, in its own process: the peak of its
resident memory less that of a process which only imports it."""
# VmHWM is the peak of this process alone; getrusage() would count the parent's memory at the fork as well.
PEAK = "print('peak kB', next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"


def measure(output: Path, threads: int, repetitions: int) -> Part:
    source, target = output / "large_checkpoint", output / "large_onnx"
    if not source.is_dir():
        python("-m", "offline.make_checkpoint", "--output", source, "--size", "small", "--layers", str(LAYERS))
    tensors = Checkpoint(source).tensors.values()
    model, largest = sum(t.nbytes for t in tensors), max(t.nbytes for t in tensors)
    imports = _peak("import offline.export_onnx")
    exported = _peak(f"from offline.export_onnx import main; assert main([{str(source)!r}, {str(target)!r}]) == 0")
    shutil.rmtree(target)
    added = exported - imports
    rows = [
        Row("added peak / model", added / model, "", ("<=", 0.05)),
        Row("added peak / largest tensor of the checkpoint", added / largest, "x"),
        Row("model", model / 1e6, "MB"),
        Row("largest tensor", largest / 1e6, "MB"),
        Row("added peak", added / 1e6, "MB"),
        Row("interpreter and imports", imports / 1e6, "MB"),
    ]
    return Part("Memory of an export", METHOD, rows, {"peak_bytes": exported, "imports_bytes": imports})


def _peak(code: str) -> int:
    """Peak resident bytes of a Python process that runs `code`."""
    return 1024 * int(python("-c", f"{code}\n{PEAK}").split("peak kB")[1])
