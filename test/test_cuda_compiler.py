"""The kernels as machine code: they compile for every GPU that we name, once for an engine folder and never again."""

import sys
import types
from pathlib import Path

import pytest
from cuda_on_cpu import Cuda

from omni_ros.engines import cuda_device
from omni_ros.engines.config import DecoderConfig
from omni_ros.engines.cuda import compiler
from omni_ros.engines.cuda.compiler import DECODE, PREFILL, load_kernels
from omni_ros.engines.cuda.kernels import NAMES, Kernels
from omni_ros.errors import EngineError

SMALL = DecoderConfig(64, 64, 2, 4, 2, 32, 1e-6, 1e6)  # 2 query heads to a key head of 32 channels


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The user's cache folder, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "omni_ros"


@pytest.fixture
def compiled(monkeypatch) -> list[str]:
    """Targets of what was compiled, as if every start were a new process."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed")
    targets, really = [], compiler.compile_kernels
    monkeypatch.setattr(compiler, "compile_kernels", lambda target, *rest: targets.append(target) or really(target, *rest))
    return targets


def engine(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("fp8_cache", [False, True], ids=["float16", "fp8"])
@pytest.mark.parametrize("target", ["sm_80", "sm_87", "sm_89", "sm_90", "sm_110", "sm_120"])
def test_compiles_for(tmp_path, compiled, target, fp8_cache):
    image = load_kernels(tmp_path, target, 128, 8, DECODE, PREFILL, fp8_cache=fp8_cache)
    assert image.startswith(b"\x7fELF") and compiled == [target]


def test_a_gpu_that_is_too_old(tmp_path):
    with pytest.raises(EngineError, match="sm_75; --device cuda needs sm_80"):
        load_kernels(tmp_path, "sm_75", 128, 8, DECODE)


def test_the_second_start_does_not_compile(tmp_path, compiled, monkeypatch):
    """Nor does it need the compiler. Another GPU, head size or KV cache is another file."""
    talker = engine(tmp_path / "talker")
    first = load_kernels(talker, "sm_90", 32, 2, DECODE)
    (kept,) = talker.iterdir()
    assert kept.name.startswith("kernels-sm_90-") and kept.suffix == ".cubin" and compiled == ["sm_90"]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
        assert load_kernels(talker, "sm_90", 32, 2, DECODE) == first
    load_kernels(talker, "sm_80", 32, 2, DECODE)
    load_kernels(talker, "sm_90", 64, 2, DECODE)
    load_kernels(talker, "sm_90", 32, 2, DECODE, fp8_cache=True)
    assert compiled == ["sm_90", "sm_80", "sm_90", "sm_90"] and len({*talker.iterdir()}) == 4


def test_the_second_engine_does_not_compile(tmp_path, monkeypatch):
    """In one process; and its folder has its own copy, for a process that opens it alone."""
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed")
    programs, create = [], nvrtc.nvrtcCreateProgram
    monkeypatch.setattr(nvrtc, "nvrtcCreateProgram", lambda *arguments: programs.append(1) or create(*arguments))
    folders = [engine(tmp_path / name) for name in ("thinker", "talker")]
    images = [load_kernels(folder, "sm_86", 32, 4, DECODE) for folder in folders]
    assert images[0] == images[1] and len(programs) == 1 and [len([*f.iterdir()]) for f in folders] == [1, 1]


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:40] + b"\0" + b[41:], lambda b: b"", lambda b: b[32:]])
def test_a_damaged_file_is_compiled_again(tmp_path, compiled, damage):
    image = load_kernels(tmp_path, "sm_90", 32, 2, DECODE)
    (path,) = tmp_path.glob("*.cubin")
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert load_kernels(tmp_path, "sm_90", 32, 2, DECODE) == image and compiled == ["sm_90"] * 2
    assert path.read_bytes() == content and not list(tmp_path.glob(".kernels-*"))


def test_where_nobody_may_write_the_users_cache_is_used_or_nothing(tmp_path, cache, compiled, monkeypatch):
    (tmp_path / "file").touch()
    closed = tmp_path / "file" / "talker"  # root may write everywhere else
    image = load_kernels(closed, "sm_90", 32, 2, DECODE)
    assert [path.read_bytes()[32:] for path in cache.iterdir()] == [image]
    assert load_kernels(closed, "sm_90", 32, 2, DECODE) == image and compiled == ["sm_90"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load_kernels(closed, "sm_90", 32, 2, DECODE) == image and compiled == ["sm_90"] * 2
    monkeypatch.setattr(compiler.os, "replace", refuse)  # a full disk
    assert load_kernels(engine(tmp_path / "full"), "sm_90", 32, 2, DECODE) == image
    assert not list((tmp_path / "full").iterdir())


def refuse(*arguments: object) -> None:
    raise OSError("no space left on device")


class Driver:
    """What Kernels asks of cuda.bindings.driver; there is no GPU that could load machine code."""

    CUresult = types.SimpleNamespace(CUDA_SUCCESS=0)

    def __init__(self):
        self.loaded: list[bytes] = []
        self.unloaded = 0

    def cuModuleLoadData(self, image):
        self.loaded.append(image)
        return 0, "module"

    def cuModuleGetFunction(self, module, name):
        return (0 if name in self.loaded[-1] else 500), name

    def cuModuleUnload(self, module):
        self.unloaded += 1
        return (0,)

    def cuGetErrorString(self, error):
        return 0, b"named symbol not found"


def test_the_gpu_is_given_what_was_kept(tmp_path, compiled, monkeypatch):
    """All kernels by name, from a compiled and from a kept file."""
    driver, gpu = Driver(), Cuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver)
    monkeypatch.setattr(cuda_device, "import_cuda", lambda: gpu)
    for _ in range(2):
        device = cuda_device.CudaDevice("talker")
        kernels = Kernels(device, tmp_path, SMALL, DECODE, PREFILL)
        assert kernels.functions.keys() == {*NAMES[DECODE], *NAMES[PREFILL]} and kernels.overlap
        device.close()
    assert compiled == ["sm_90"] and driver.loaded[0] == driver.loaded[1] and driver.unloaded == 2


def test_without_a_compiler_and_nothing_kept_the_error_says_what_to_install(tmp_path, monkeypatch):
    gpu = Cuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", Driver())
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    monkeypatch.setattr(cuda_device, "import_cuda", lambda: gpu)
    compiler.compile_kernels.cache_clear()
    with pytest.raises(EngineError, match="pip install nvidia-cuda-nvrtc"):
        Kernels(cuda_device.CudaDevice("talker"), tmp_path, SMALL, DECODE)
