"""Which test files this machine cannot run, for want of what: a robot under `colcon test` has no torch, a bare machine no g++.

Those files are left out and named in one line at the head of the report, instead of ending the whole run.
"""

import ast
import functools
import importlib.util
import shutil
from pathlib import Path

HERE = Path(__file__).parent
FOLDERS = (HERE, HERE / "kernels_on_cpu")  # helpers are imported by their bare names
BEHIND = {"offline": ("onnx", "ml_dtypes", "tqdm"), "bench": ("onnx",), "demo": ("rosbags", "matplotlib")}
HOW = {"rclpy": "source a ROS installation", "g++": "apt install g++"}


def absent(top: str) -> set[str]:
    """What is not installed of a module, or of what is behind a package of this repository."""
    return {module for module in BEHIND.get(top, (top,)) if importlib.util.find_spec(module) is None}


@functools.cache
def missing_modules(path: Path) -> frozenset[str]:
    """Modules that the file imports at its top, or a helper beside it does, and that are not installed."""
    missing: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for top in {name.split(".")[0] for name in names}:
            helper = next((f for folder in FOLDERS if (f := folder / f"{top}.py").is_file()), None)
            if helper is not None:
                missing |= missing_modules(helper)
            else:
                missing |= absent(top)
    return frozenset(missing)


def left_out() -> dict[str, list[str]]:
    """Module -> test files that cannot be collected without it."""
    found: dict[str, list[str]] = {}
    for path in sorted(HERE.glob("test_*.py")):
        for module in missing_modules(path):
            found.setdefault(module, []).append(path.name)
    return found


def report() -> list[str]:
    """Lines for the head of the report; none where nothing is missing."""
    found, lines = left_out(), []
    if shutil.which("g++") is None:
        lines.append(f"g++ is missing ({HOW['g++']}): tests of the GPU's kernels are skipped")
    for module, files in sorted(found.items()):
        how = HOW.get(module, "see CONTRIBUTING.md, 'Set-up'")
        lines.append(f"{module} is missing ({how}): {len(files)} test files are left out: {', '.join(files)}")
    return lines
