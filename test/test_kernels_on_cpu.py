"""The CPU that stands in for a GPU: right kernels give right numbers, and each kind of wrong kernel is reported by its line."""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cpu_kernels import COMPILER, NO_COMPILER, CpuKernels, KernelError

pytestmark = pytest.mark.skipif(not COMPILER, reason=NO_COMPILER)
RIGHT = r"""
#include <cuda_fp16.h>
constexpr unsigned FULL = 0xffffffffu;
struct Pair { const float* data; int scale; float offset[3]; };

// A template's shared variable is one for each of its instances.
template <int N> __device__ __forceinline__ float first_of(float v) {
  __shared__ float all[N];
  all[threadIdx.x] = v;
  __syncthreads();
  return all[0];
}

// out [gridDim.x] = sum of each block's share of x; the last block to finish adds them to out [gridDim.x].
extern "C" __global__ void __launch_bounds__(BLOCK) reduce(const float* x, int n, float* out, unsigned* arrived, int* order) {
  __shared__ float partial[32], unused;
  __shared__ bool last;
  float sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += __ldg(x + i);
  for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(FULL, sum, step);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    sum = 0;
    for (int i = 0; i < BLOCK / 32; i++) sum += partial[i];
    out[blockIdx.x] = sum;
    __threadfence();
    const unsigned before = atomicAdd(arrived, 1);
    order[before] = blockIdx.x;
    last = before == gridDim.x - 1;
  }
  __syncthreads();
  if (!last || threadIdx.x) return;
  for (int i = 0; i < gridDim.x; i++) atomicAdd(out + gridDim.x, out[i]);
}

extern "C" __global__ void from_half(const unsigned short* h, float* out, float2* pairs) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = __half2float(__ushort_as_half(h[i]));
  if (i % 2 == 0) pairs[i / 2] = __half22float2(*(const __half2*)(h + i));
}
extern "C" __global__ void to_half(const float* f, unsigned short* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = __half_as_ushort(__float2half(f[i]));
}

// Threads leave at different times; barriers and warp operations go on with the others.
extern "C" __global__ void leave(int stay, int* out) {
  __shared__ int count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  if ((int)threadIdx.x >= stay) return;
  atomicAdd(&count, 1);
  __syncthreads();
  __syncwarp();
  out[threadIdx.x * 4] = count;
  out[threadIdx.x * 4 + 1] = __ballot_sync(FULL, threadIdx.x % 2);
  out[threadIdx.x * 4 + 2] = __any_sync(FULL, threadIdx.x == 5);
  out[threadIdx.x * 4 + 3] = __shfl_sync(FULL, (int)threadIdx.x, 31);
}

extern "C" __global__ void lanes(double* out) {
  const int i = threadIdx.x;
  out[i] = __shfl_sync(FULL, i + 0.5, 7);
  out[32 + i] = __shfl_down_sync(FULL, i + 0.5, 3);
  out[64 + i] = __shfl_sync(FULL, i + 0.5, 1, 8);
  out[96 + i] = first_of<32>(i + 2) + first_of<64>(i + 3);
}

extern "C" __global__ void by_value(Pair p, char small, double big, Pair* null, float* out) {
  out[threadIdx.x + threadIdx.y * blockDim.x] = p.data[threadIdx.x] * p.scale + p.offset[2] + small + big + (null == nullptr);
}

// Never-written shared memory, static and dynamic, in the first block and in one that follows another's.
extern "C" __global__ void unwritten(float* out) {
  extern __shared__ __align__(16) unsigned char dynamic[];
  __shared__ float fixed[2];
  if (threadIdx.x == 0) out[blockIdx.x * 2] = fixed[1], out[blockIdx.x * 2 + 1] = ((float*)dynamic)[3];
  __syncthreads();
  if (threadIdx.x == 0) fixed[1] = 1, ((float4*)dynamic)[0] = make_float4(1, 2, 3, 4);
}

extern "C" __global__ void position(unsigned* out) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] = block << 16 | threadIdx.z << 8 | threadIdx.y << 4 | threadIdx.x;
}
"""


def address(array: np.ndarray) -> int:
    return array.ctypes.data


def compiled(tmp_path_factory: pytest.TempPathFactory, text: str, **defines: int) -> CpuKernels:
    path = tmp_path_factory.mktemp("kernels") / "kernels.cu"
    path.write_text(text)
    return CpuKernels(path, defines)


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> CpuKernels:
    return compiled(tmp_path_factory, RIGHT, BLOCK=96)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_reduction_over_lanes_warps_and_blocks(right: CpuKernels, seed: int | None):
    n, blocks = 5000, 17
    x = np.arange(n, dtype=np.float32) % 7  # sums of small integers are exact in any order
    out, arrived, order = np.zeros(blocks + 1, np.float32), np.zeros(1, np.uint32), np.full(blocks, -1, np.int32)
    right.launch(
        "reduce",
        (blocks, 1, 1),
        (96, 1, 1),
        0,
        [address(x), ctypes.c_int(n), address(out), address(arrived), address(order)],
        seed,
    )
    padded = np.zeros(-(-n // (96 * blocks)) * 96 * blocks, np.float32)
    padded[:n] = x
    np.testing.assert_array_equal(out[:-1], padded.reshape(-1, blocks, 96).sum((0, 2)))
    assert out[-1] == x.sum() and arrived[0] == blocks
    assert sorted(order) == list(range(blocks)) and (list(order) == sorted(order)) == (seed is None)


def test_half_conversions_are_numpys(right: CpuKernels):
    bits = np.arange(1 << 16, dtype=np.uint16)
    reference = bits.view(np.float16).astype(np.float32)
    single, pairs = np.empty(1 << 16, np.float32), np.empty(1 << 16, np.float32)
    right.launch("from_half", (256, 1, 1), (256, 1, 1), 0, [address(bits), address(single), address(pairs)])
    number = ~np.isnan(reference)
    for mine in (single, pairs):
        np.testing.assert_array_equal(mine.view(np.uint32)[number], reference.view(np.uint32)[number])
        assert np.isnan(mine[~number]).all()

    # every half, the middle between neighbours, and the floats on both sides of it: ties, overflow, denormals
    finite = np.append(np.unique(reference[np.isfinite(reference)]), np.float32(65536))
    middle = (finite[1:] + finite[:-1]) / 2
    floats = np.concatenate(
        [
            reference,
            *(np.nextafter(middle, np.float32(side)) for side in (-np.inf, np.inf)),
            middle,
            np.float32([1e-45, -1e-45, 1e-30, 3e38, -3e38]),
        ]
    )
    floats = np.resize(floats, -(-len(floats) // 256) * 256)
    halves = np.empty(len(floats), np.uint16)
    right.launch("to_half", (len(floats) // 256, 1, 1), (256, 1, 1), 0, [address(floats), address(halves)])
    with np.errstate(over="ignore"):
        expected = floats.astype(np.float16)
    number = ~np.isnan(floats)
    np.testing.assert_array_equal(halves[number], expected.view(np.uint16)[number])
    assert np.isnan(halves.view(np.float16)[~number]).all()


@pytest.mark.parametrize("stay", [1, 7, 32, 40, 64])
def test_threads_that_left_are_not_waited_for(right: CpuKernels, stay: int):
    out = np.full((64, 4), -7, np.int32)
    right.launch("leave", (1, 1, 1), (64, 1, 1), 0, [ctypes.c_int(stay), address(out)], seed=3)
    for thread in range(64):
        first = thread // 32 * 32
        lanes = [t for t in range(first, first + 32) if t < stay]
        votes = sum(1 << t - first for t in lanes if t % 2)
        expected = [stay, votes - (1 << 32 if votes >= 1 << 31 else 0), int(5 in lanes), first + 31 if first + 31 < stay else -1]
        assert list(out[thread]) == (expected if thread < stay else [-7] * 4), thread


def test_lanes_read_each_other(right: CpuKernels):
    out, lane = np.empty((4, 32)), np.arange(32)
    right.launch("lanes", (1, 1, 1), (32, 1, 1), 0, [address(out)])
    np.testing.assert_array_equal(out[0], 7.5)
    np.testing.assert_array_equal(out[1], np.where(lane + 3 < 32, lane + 3, lane) + 0.5)
    np.testing.assert_array_equal(out[2], lane // 8 * 8 + 1.5)
    np.testing.assert_array_equal(out[3], 5)


def test_arguments_are_passed_as_to_cuLaunchKernel(right: CpuKernels):
    class Pair(ctypes.Structure):
        _fields_ = [("data", ctypes.c_void_p), ("scale", ctypes.c_int), ("offset", ctypes.c_float * 3)]

    data, out = np.arange(4, dtype=np.float32), np.empty((2, 4), np.float32)
    pair = Pair(address(data), 10, (ctypes.c_float * 3)(0, 0, 0.25))
    right.launch(
        "by_value", (1, 1, 1), (4, 2, 1), 0, [pair, ctypes.c_byte(-2), ctypes.c_double(0.5), ctypes.c_void_p(), address(out)]
    )
    np.testing.assert_array_equal(out, np.tile(data * 10 - 0.25, (2, 1)))


def test_shared_memory_starts_as_nan_in_every_block(right: CpuKernels):
    out = np.zeros((3, 2), np.float32)
    right.launch("unwritten", (3, 1, 1), (32, 1, 1), 16, [address(out)])
    assert np.isnan(out).all()


@pytest.mark.parametrize("seed", [None, 5])
def test_every_thread_of_every_block_runs_once(right: CpuKernels, seed: int | None):
    out = np.zeros((2 * 3 * 2, 4, 3, 5), np.uint32)
    right.launch("position", (2, 3, 2), (5, 3, 4), 0, [address(out)], seed)
    block, z, y, x = np.indices(out.shape)
    np.testing.assert_array_equal(out, block << 16 | z << 8 | y << 4 | x)


RACE = "with no barrier between"
WRONG = {  # name -> body, what the report says; the wrong line is marked
    "static_overrun": ("__shared__ float a[32], b[32]; float* p = a; p[i + n] = 1; // HERE", "writes 4 bytes outside"),
    "dynamic_overrun": ("extern __shared__ float xs[]; out[0] = xs[i + n]; // HERE", "reads 4 bytes outside"),
    "before_the_start": ("extern __shared__ float xs[]; if (i == 0) xs[-n] = 1; // HERE", "writes 4 bytes outside"),
    "straddles_the_end": ("extern __shared__ float xs[]; if (i == 0) *(Words*)(xs + 30) = {}; // HERE", "12 bytes outside"),
    "atomic_overrun": ("__shared__ int a[4]; int* p = a; atomicAdd(p + n + 4, 1); // HERE", "writes 4 bytes outside"),
    "index": ("__shared__ float a[4][8]; a[1][n + 8] = 1; // HERE", "index 9 of an array"),
    "misaligned": ("*(float4*)(out + n) = {}; // HERE", "misaligned"),
    "race_write_read": ("__shared__ float a[64]; a[i] = i; out[i] = a[(i + n) % blockDim.x]; // HERE", RACE),
    "race_read_write": ("__shared__ float a[64]; a[i] = i; __syncthreads();\n float v = a[i ^ 1]; a[i] = v; // HERE", RACE),
    "race_write_write": ("__shared__ int a; a = i; // HERE", r"overwrites shared memory that thread \(\d+, 0, 0\) wrote"),
    "race_between_warps": ("__shared__ int a[64]; a[i] = i; __syncwarp(); out[i] = a[i ^ 32]; // HERE", RACE),
    "race_after_exit": ("__shared__ int a; if (i == 63) { a = 1; return; } if (i < n) out[0] = a; // HERE", RACE),
    "shuffle_is_no_barrier": ("__shared__ int a[64]; a[i] = i; __shfl_sync(~0u, i, 0); out[i] = a[i ^ 1]; // HERE", RACE),
    "stack": (
        "volatile char a[300000]; for (int k = 0; k < 300000; k++) a[k] = k;\n out[i] = a[n]; __syncthreads(); // HERE",
        "needs more than 262144 bytes of stack",
    ),
    "deadlock": ("if (i % 2) __syncwarp(); // HERE\n else __syncthreads();", "waits for ever in __syncwarp: 16 lanes"),
    "missing_lane": ("if (i < 33) __syncthreads(); else __shfl_sync(~0u, i, 0); // HERE", "waits for ever in a shuffle: 1 lane"),
    "spin": ("if (i == 0) while (atomicAdd((int*)out, 0) < 1) {} // HERE", "goes on for ever"),
    "different_operations": ("if (i % 2) __any_sync(~0u, 1); else __shfl_sync(~0u, i, 0); // HERE", "while others of its warp"),
    "partial_mask": ("__syncwarp(0xffff); // HERE", "gives mask 0000ffff"),
}


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> CpuKernels:
    kernels = [
        f'extern "C" __global__ void {name}(float* out, int n) {{\n const int i = threadIdx.x;\n {body}\n}}\n'
        for name, (body, _) in WRONG.items()
    ]
    good = 'extern "C" __global__ void good(float* out, int n) { __syncthreads(); out[threadIdx.x] = n; }\n'
    return compiled(tmp_path_factory, "struct Words { float x, y, z; };\n" + "".join(kernels) + good)


@pytest.mark.parametrize("seed", [None, 2])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_kernels_are_reported_by_line_and_the_next_launch_works(wrong: CpuKernels, name: str, seed: int | None):
    out = np.zeros(64, np.float32)
    aligned = address(out) + -address(out) % 16
    with pytest.raises(KernelError, match=WRONG[name][1]) as caught:
        wrong.launch(name, (2, 1, 1), (64, 1, 1), 128, [aligned, ctypes.c_int(1)], seed)
    lines = wrong.source.read_text().splitlines()
    file, line, message = str(caught.value).split(":", 2)
    assert file == "kernels.cu" and message.startswith(f" {name}: block (") and "HERE" in lines[int(line) - 1], caught.value
    after = np.zeros(128, np.float32)
    wrong.launch("good", (1, 1, 1), (128, 1, 1), 0, [address(after), ctypes.c_int(4)], seed)
    assert (after == 4).all()


def test_a_library_takes_few_of_the_mappings_that_a_process_may_have(tmp_path_factory: pytest.TempPathFactory):
    """Before: two a thread. A whole test run met the limit of 65,530, and its process was aborted."""

    def mappings() -> int:
        return len(Path("/proc/self/maps").read_text().splitlines())

    body, before = "{ __syncthreads(); out[threadIdx.x] = 7; }", mappings()
    out = np.zeros(1024, np.int32)
    compiled(tmp_path_factory, f'extern "C" __global__ void all(int* out) {body}').launch(
        "all", (1, 1, 1), (1024, 1, 1), 0, [address(out)]
    )
    assert (out == 7).all() and mappings() - before < 100


RACE_FREE = r"""
extern "C" __global__ void phases(int* out) {
  extern __shared__ int xs[];
  const int i = threadIdx.x, n = blockDim.x;
  for (int round = 0; round < 4; round++) {
    xs[i] = i + round;                       // own place
    __syncwarp();
    out[round * n + i] = xs[i ^ 1];          // a neighbour's of the warp
    __syncwarp();
    xs[i ^ 3] += 1;
    __syncthreads();
    out[round * n + i] += xs[(i + 40) % n];  // another warp's
    __syncthreads();
  }
}
"""


@pytest.mark.parametrize("seed", [None, 4])
def test_barriers_of_both_kinds_make_sharing_right(tmp_path_factory: pytest.TempPathFactory, seed: int | None):
    out, i = np.zeros((4, 96), np.int32), np.arange(96)
    kernels = compiled(tmp_path_factory, RACE_FREE)
    kernels.launch("phases", (1, 1, 1), (96, 1, 1), 96 * 4, [address(out)], seed)
    np.testing.assert_array_equal(out, [(i ^ 1) + (i + 40) % 96 + 2 * r + 1 for r in range(4)])


def test_launches_that_cuda_refuses(right: CpuKernels, tmp_path: Path):
    out = np.zeros(8, np.float32)
    one = (1, 1, 1)
    for name, grid, block, shared, arguments, said in [
        ("nothing", one, one, 0, [], "has no"),
        ("unwritten", one, one, 16, [], "declares"),
        ("unwritten", one, one, 16, [ctypes.c_int(0)], "declares"),
        ("unwritten", one, one, 1 << 16, [address(out)], "shared memory"),
        ("unwritten", (0, 1, 1), one, 16, [address(out)], "at least one"),
        ("unwritten", one, (32, 33, 1), 16, [address(out)], "at most 1024 threads"),
        ("reduce", one, (97, 1, 1), 0, [address(out), ctypes.c_int(0), *[address(out)] * 3], "at most 96 threads"),
    ]:
        with pytest.raises(KernelError, match=said):
            right.launch(name, grid, block, shared, arguments)
    (tmp_path / "broken.cu").write_text('extern "C" __global__ void f() { undefined(); }')
    with pytest.raises(KernelError, match=r"broken\.cu:1"):
        CpuKernels(tmp_path / "broken.cu", {})


def test_any_thread_may_launch(right: CpuKernels):
    lanes = np.empty((6, 4, 32))
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda out: right.launch("lanes", (1, 1, 1), (32, 1, 1), 0, [address(out)]), lanes))
    assert (lanes == lanes[0]).all() and (lanes[0, 0] == 7.5).all()


def test_compiled_once_for_the_same_text_and_defines(right: CpuKernels):
    assert CpuKernels(right.source, {"BLOCK": 96}).library is right.library
    assert CpuKernels(right.source, {"BLOCK": 64}).kernels["reduce"].max_threads == 64
