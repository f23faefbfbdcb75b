"""The kernels of kernels/decode/ and kernels/prefill/ as machine code: compiled by NVRTC, or as an earlier start left them.

A compiled file lies beside the engine, named after the GPU and the source. Compiling takes seconds; reading it back does not, and
needs no NVRTC. To compile anew, delete kernels-*.cubin.
"""

import contextlib
import functools
import hashlib
import importlib
import os
import tempfile
from pathlib import Path

from omni_ros.errors import EngineError

HERE = Path(__file__).parent / "kernels"
DECODE, PREFILL = "decode", "prefill"  # the folders; prefill/ needs decode/
SOURCES = {
    DECODE: ("rows", "gemv", "attend", "feed_forward", "sample"),
    PREFILL: ("tiles", "gemm", "norm", "grouped_gemm", "attend_rows"),
}
OLDEST = 80  # compute capability 8.0: Ampere, whose instructions the kernels need
DIGEST = hashlib.sha256().digest_size


def source(*folders: str) -> str:
    """Their files as one text, in which compilers still name the file of a mistake."""
    paths = [HERE / folder / f"{name}.cu" for folder in folders for name in SOURCES[folder]]
    return "".join(f'#line 1 "{path.name}"\n{path.read_text()}' for path in paths)


def load_kernels(directory: Path, target: str, head_dim: int, group: int, *folders: str, fp8_cache: bool = False) -> bytes:
    """Those of `folders` as machine code for a GPU such as "sm_110"; `group` query heads share a key head;
    `fp8_cache`: they keep keys and values in E4M3.

    `directory` is the engine's: what was compiled is kept there, or in the user's cache folder where nobody may write.
    """
    if int(target[3:]) < OLDEST:
        raise EngineError(f"the GPU here is {target}; --device cuda needs sm_{OLDEST} (Ampere) or newer. Build with --device cpu")
    text, options = source(*folders), (f"-DHEAD_DIM={head_dim}", f"-DGROUP={group}", *["-DFP8_CACHE"] * fp8_cache)
    name = f"kernels-{target}-{hashlib.sha256(' '.join((*options, text)).encode()).hexdigest()[:16]}.cubin"
    for folder in (directory, user_cache()):
        if (image := _read(folder / name)) is not None:
            return image
    image = compile_kernels(target, text, options)
    for folder in (directory, user_cache()):
        if _write(folder / name, image):
            break
    return image


@functools.cache
def compile_kernels(target: str, text: str, options: tuple[str, ...]) -> bytes:
    """A .cubin. Takes seconds and needs no GPU; once in a process for the same text. Raises EngineError with NVRTC's words."""
    nvrtc = importlib.import_module("cuda.bindings.nvrtc")
    flags = [o.encode() for o in (f"--gpu-architecture={target}", "--std=c++17", *options)]
    _, program = nvrtc.nvrtcCreateProgram(text.encode(), b"kernels.cu", 0, [], [])
    try:
        (error,) = nvrtc.nvrtcCompileProgram(program, len(flags), flags)
        if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = bytes(nvrtc.nvrtcGetProgramLogSize(program)[1])
            nvrtc.nvrtcGetProgramLog(program, log)
            raise EngineError(f"{HERE}: does not compile for {target}: {log.decode(errors='replace').strip()}")
        image = bytes(nvrtc.nvrtcGetCUBINSize(program)[1])
        nvrtc.nvrtcGetCUBIN(program, image)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return image


# ---- what earlier starts left: SHA-256 of the machine code, then the machine code -------------------------------------------
def user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "omni_ros"


def _read(path: Path) -> bytes | None:
    """None when it is missing or damaged: then it is compiled again."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    image = content[DIGEST:]
    return image if image and hashlib.sha256(image).digest() == content[:DIGEST] else None


def _write(path: Path, image: bytes) -> bool:
    """Whether it was possible. Whole or not at all: other processes may read or write the same file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file, partial = tempfile.mkstemp(prefix=".kernels-", dir=path.parent)
    except OSError:
        return False
    try:
        with open(file, "wb") as f:
            f.write(hashlib.sha256(image).digest() + image)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        return False
    return True
