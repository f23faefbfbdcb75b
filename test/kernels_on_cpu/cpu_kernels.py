"""Compile a file of CUDA kernels with g++ and launch them on the CPU, with the checks of NVIDIA's compute-sanitizer.

The file knows nothing of this. It is compiled against cuda_on_cpu.h, as NVRTC would against its own headers; runtime.cpp runs
the blocks. Slow and strict: shared memory starts as NaN, and whatever CUDA leaves undefined there is an error.
"""

import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BUILDS = tempfile.TemporaryDirectory(prefix="cuda_on_cpu_")
# No _FORTIFY_SOURCE: it refuses to longjmp from stack to stack.
COMPILER = bool(shutil.which("g++") and shutil.which("addr2line"))
NO_COMPILER = "the GPU's kernels, run on the CPU: g++ is missing (apt install g++)"
GPP = ["g++", "-std=c++17", "-fPIC", "-U_FORTIFY_SOURCE"]
# The hooks that runtime.cpp has; no assumption that CUDA code breaks; of DWARF 5, addr2line 2.40 confuses the files.
KERNEL_FLAGS = [
    "-O1",
    "-gdwarf-4",
    "-fno-exceptions",
    "-fno-strict-aliasing",
    "-fsanitize=alignment,bounds",
    "-fsanitize=thread",
    "--param",
    "tsan-instrument-func-entry-exit=0",
]
KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+(?:void\s+)?(?:__launch_bounds__\s*\(([^()]*)\)\s*)?(?:void\s+)?(\w+)\s*\(')
DYNAMIC = re.compile(r"extern\s+__shared__\s+(?:__align__\s*\(\s*\d+\s*\)\s+)?(\w+(?:\s+\w+)*?)\s+(\w+)\s*\[\s*\]\s*;")
STATIC = re.compile(r"\t\.local\t(_ZZ\S+)\n\t\.comm\t\1,(\d+),(\d+)\n")  # how g++ writes a __shared__ variable
GAP = 1024  # bytes after each of them that belong to none
MAX_THREADS, MAX_GRID_YZ, MAX_SHARED = 1024, 65535, 48 << 10


class KernelError(Exception):
    """A kernel or its launch is wrong; says what, and where in the file."""


@dataclass(frozen=True)
class Kernel:
    call: ctypes._CFuncPtr  # takes cuLaunchKernel's kernelParams
    parameter_sizes: list[int]  # bytes
    max_threads: int  # __launch_bounds__


class CpuKernels:
    """The `extern "C" __global__` functions of a file, compiled with `defines`; once in a process for the same text."""

    def __init__(self, source: Path | str, defines: dict[str, int]):
        self.source = Path(source)
        self.kernels, self.library, self.lock = _load(self.source, self.source.read_text(), tuple(sorted(defines.items())))

    def launch(
        self,
        name: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared_bytes: int,
        arguments: Sequence[object],
        seed: int | None = None,
    ) -> None:
        """Run a grid to its end.

        `arguments` are ctypes values of the sizes that the kernel declares, or addresses as int; memory is the process's own.
        Blocks and threads start in order, or shuffled by `seed`: a GPU promises no order. Raises KernelError for a launch that
        CUDA refuses, and at the first deadlock, race or overrun in shared memory or misaligned access; the next launch works.
        """
        if name not in self.kernels:
            raise KernelError(f'{self.source.name} has no extern "C" __global__ {name}')
        kernel = self.kernels[name]
        values = [ctypes.c_void_p(a) if isinstance(a, int) else a for a in arguments]
        if [ctypes.sizeof(v) for v in values] != kernel.parameter_sizes:
            raise KernelError(f"{name} is given {[ctypes.sizeof(v) for v in values]} bytes, declares {kernel.parameter_sizes}")
        if not 0 < prod(block) <= kernel.max_threads or min(*block, *grid) < 1 or max(grid[1:]) > MAX_GRID_YZ:
            raise KernelError(
                f"{name}: grid {grid}, block {block}: at most {kernel.max_threads} threads, {MAX_GRID_YZ} blocks "
                "in y and z, and at least one of everything"
            )
        if not 0 <= shared_bytes <= MAX_SHARED:
            raise KernelError(f"{name}: {shared_bytes} bytes of dynamic shared memory, CUDA gives {MAX_SHARED} unasked")
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        where = ctypes.c_size_t()
        with self.lock:
            message = self.library.cuda_on_cpu_launch(
                kernel.call,
                pointers,
                (ctypes.c_uint * 3)(*grid),
                (ctypes.c_uint * 3)(*block),
                ctypes.c_uint(shared_bytes),
                ctypes.c_longlong(-1 if seed is None else seed),
                ctypes.byref(where),
            )
        if message:
            raise KernelError(f"{self._line(where.value)}: {name}: {message.decode()}")

    def _line(self, offset: int) -> str:
        """file:line of an instruction, of the innermost function that is not CUDA's."""
        lines = _run("addr2line", "-i", "-e", self.library._name, hex(offset)).splitlines()
        found = (line.split(" ")[0] for line in lines if "cuda_on_cpu.h" not in line)
        return next(found, str(self.source)).rsplit("/", 1)[-1]


def _run(*command: object) -> str:
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if result.returncode:
        raise KernelError(f"{command[0]} failed:\n{result.stderr}")
    return result.stdout


@functools.cache
def _runtime() -> Path:
    target = Path(BUILDS.name, "runtime.o")
    _run(*GPP, "-O2", "-c", HERE / "runtime.cpp", "-o", target)
    return target


@functools.cache
def _load(source: Path, text: str, defines: tuple) -> tuple[dict[str, Kernel], ctypes.CDLL, threading.Lock]:
    """The kernels of a text, the library that they are in, and its lock: a library has one GPU. Without a compiler, the test
    that asks is skipped."""
    if not COMPILER:
        pytest.skip(NO_COMPILER)
    folder = Path(tempfile.mkdtemp(dir=BUILDS.name))
    (folder / "cuda_fp16.h").touch()  # its content is in ours
    code, assembler, library = folder / "kernels.cpp", folder / "kernels.s", folder / "kernels.so"
    found = [(bounds.split(",")[0].strip() or str(MAX_THREADS), name) for bounds, name in KERNEL.findall(text)]
    # The unnamed namespace makes each __shared__ variable local to the file, also those of templates.
    text = DYNAMIC.sub(r"\1* const \2 = (\1*)cuda_on_cpu::dynamic_shared;", text)
    code.write_text(
        f'#include "cuda_on_cpu.h"\nnamespace {{\n#line 1 "{source}"\n{text}\n}}\n'
        + "".join(
            f'extern "C" void call_{name}(void** p) {{ cuda_on_cpu::call({name}, p); }}\n'
            f'extern "C" int sizes_{name}(int* sizes) {{ return cuda_on_cpu::parameter_sizes({name}, sizes); }}\n'
            f'extern "C" int bounds_{name}() {{ return {bounds}; }}\n'
            for bounds, name in found
        )
    )
    _run(
        *GPP,
        *KERNEL_FLAGS,
        "-S",
        f"-I{HERE}",
        f"-I{folder}",
        f"-I{source.parent}",
        *(f"-D{k}={v}" for k, v in defines),
        code,
        "-o",
        assembler,
    )
    assembler.write_text(STATIC.sub(_place, assembler.read_text()))
    _run(*GPP, "-shared", "-Wl,-Bsymbolic", assembler, _runtime(), "-o", library)
    loaded = ctypes.CDLL(str(library))
    loaded.cuda_on_cpu_launch.restype = ctypes.c_char_p
    kernels = {}
    for _, name in found:
        sizes = (ctypes.c_int * 256)()
        count = loaded[f"sizes_{name}"](sizes)
        kernels[name] = Kernel(loaded[f"call_{name}"], sizes[:count], loaded[f"bounds_{name}"]())
    return kernels, loaded, threading.Lock()


def _place(variable: re.Match) -> str:
    """A __shared__ variable for runtime.cpp: in its section, with a gap after it, and in the table of variables."""
    name, size, alignment = variable.groups()
    return (
        f'\t.pushsection cuda_shared,"aw"\n\t.balign {alignment}\n{name}:\n\t.zero {size}+{GAP}\n\t.popsection\n'
        f'\t.pushsection cuda_variables,"aw"\n\t.balign 16\n\t.quad {name},{size}\n\t.popsection\n'
    )
