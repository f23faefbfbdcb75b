// Runs the kernels that were compiled against cuda_on_cpu.h: blocks one after another, the threads of a block as fibers.
//
// A fiber runs until it waits for others. The kernels are compiled with GCC's hooks for sanitizers, which call us before each
// access to memory; we check those to shared memory, for overruns and for races as CUDA's memory model defines them: a
// __syncthreads orders a block's accesses, a __syncwarp a warp's, a shuffle or vote none.
#include <dlfcn.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <deque>
#include <numeric>
#include <random>
#include <vector>

struct Index { unsigned x, y, z; };
Index threadIdx, blockIdx, blockDim, gridDim;

struct Variable { char* start; uint64_t size; };  // in shared memory
extern "C" {  // the linker's names for the ends of two sections; cpu_kernels.py puts the kernels' __shared__ variables there
extern char __start_cuda_shared[] __attribute__((visibility("hidden")));
extern char __stop_cuda_shared[] __attribute__((visibility("hidden")));
extern Variable __start_cuda_variables[] __attribute__((visibility("hidden")));
extern Variable __stop_cuda_variables[] __attribute__((visibility("hidden")));
}
namespace cuda_on_cpu {
__attribute__((section("cuda_shared"), aligned(16))) char dynamic_shared[320 << 10] = {0};  // more than any GPU has
}
__attribute__((section("cuda_variables"), used, aligned(16))) Variable dynamic_variable = {cuda_on_cpu::dynamic_shared, 0};

namespace cuda_on_cpu {
struct Copy { void* to; const void* from; };
}
namespace {
constexpr int WARP = 32, MAX_THREADS = 1024, STACK = 1 << 18, PAGE = 1 << 12;
constexpr uint64_t FOREVER = 1 << 26;  // accesses of one thread that waits for nobody
constexpr uint64_t END = 0x5ca1ab1e0ddba11;  // the last word of a stack

const char* const SYNCWARP = "__syncwarp";

struct Group {  // the threads of a block or a warp, and where they meet
  int live = 0;
  std::vector<int> waiting;
  const char* operation = "";
  unsigned synced = 0;  // a warp's __syncwarps
};
struct Fiber {
  bool started = false;
  char* stack = nullptr;
  ucontext_t start;
  jmp_buf here;
  Index index;
  void* caller = nullptr;  // where the kernel waits
  std::deque<std::pair<int, cuda_on_cpu::Copy>> copies;  // put off, each with the number of its group
  int groups = 0;                                        // that it has ended
};
struct Byte {  // of shared memory: who used it last
  uint64_t written = 0, read = 0;              // in which `epoch`
  unsigned write_synced = 0, read_synced = 0;  // `synced` of that warp
  int writer = 0, reading_warp = 0;
  unsigned warps = 0, lanes = 0;  // that read: all in that epoch, and those of `reading_warp` since `read_synced`
};

Fiber fibers[MAX_THREADS];
char* stacks;  // of all fibers: a process may have 65,530 mappings, and tests compile many libraries
Group block, warps[MAX_THREADS / WARP];
uint64_t slots[MAX_THREADS / WARP][2][WARP];  // what lanes exchange, in turn: nobody overwrites what others still read
int turn[MAX_THREADS / WARP];
std::deque<int> ready;
Byte* bytes;  // one for each byte between the ends of section cuda_shared
uint64_t epoch, accesses;  // how many __syncthreads were passed, of all blocks; accesses since the fiber was resumed
int current;
jmp_buf finished;
void (*kernel)(void**);
void** parameters;
char message[512];
void* fault_caller;

// Ends the launch. All fibers start afresh in the next one.
template <class... A> [[noreturn]] void fault(void* caller, const char* format, A... values) {
  const Index b = blockIdx, t = fibers[current].index;
  const int length = snprintf(message, sizeof(message), "block (%u, %u, %u), thread (%u, %u, %u) ", b.x, b.y, b.z, t.x, t.y, t.z);
  snprintf(message + length, sizeof(message) - length, format, values...);
  fault_caller = caller;
  for (Fiber& f : fibers) f.started = false;
  _longjmp(finished, 1);
}

// ---- fibers ---------------------------------------------------------------------------------------------------------
void release(Group& group) {
  if (&group == &block) epoch++;
  if (group.operation == SYNCWARP) group.synced++;
  for (int thread : group.waiting)
    if (thread != current) ready.push_back(thread);
  group.waiting.clear();
}

void run_kernel();

void resume_next() {
  if (ready.empty() && !block.live) _longjmp(finished, 1);
  if (ready.empty()) {  // whoever is not in a warp's operation waits for the block
    const Group& stuck = *std::find_if(warps, warps + MAX_THREADS / WARP, [](const Group& w) { return !w.waiting.empty(); });
    current = stuck.waiting[0];
    fault(fibers[current].caller, "waits for ever in %s: %d lanes of its warp do not come, %d threads of the block wait in "
          "__syncthreads", stuck.operation, stuck.live - (int)stuck.waiting.size(), (int)block.waiting.size());
  }
  current = ready.front();
  ready.pop_front();
  accesses = 0;
  Fiber& f = fibers[current];
  threadIdx = f.index;
  if (f.started) _longjmp(f.here, 1);
  f.started = true;
  if (!f.stack) {
    if (!stacks) {
      constexpr size_t SIZE = (MAX_THREADS + 2) * (size_t)STACK;  // two more, for what a thread puts past its own
      char* mapped = (char*)mmap(nullptr, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (mapped == MAP_FAILED) abort();
      mprotect(mapped, PAGE, PROT_NONE);
      stacks = mapped + 2 * STACK;
    }
    f.stack = stacks + (size_t)current * STACK;
    *(uint64_t*)f.stack = END;
  }
  getcontext(&f.start);
  f.start.uc_stack = {f.stack, 0, STACK};
  makecontext(&f.start, run_kernel, 0);
  setcontext(&f.start);
}

__attribute__((noinline)) void yield() {
  if (*(uint64_t*)fibers[current].stack != END) {
    *(uint64_t*)fibers[current].stack = END;
    fault(fibers[current].caller, "needs more than %d bytes of stack", STACK);
  }
  if (!_setjmp(fibers[current].here)) resume_next();
}

void run_kernel() {
  for (;;) {
    kernel(parameters);
    for (Group* g : {&warps[current / WARP], &block})
      if (--g->live == (int)g->waiting.size()) release(*g);
    yield();  // until the next block
  }
}

// Wait until all live threads of the group are here.
void meet(Group& group, const char* operation, void* caller) {
  if (!group.waiting.empty() && group.operation != operation)
    fault(caller, "is in %s while others of its warp are in %s", operation, group.operation);
  group.operation = operation;
  group.waiting.push_back(current);
  fibers[current].caller = caller;
  if ((int)group.waiting.size() < group.live) return yield();
  release(group);
}

// ---- memory ---------------------------------------------------------------------------------------------------------
// Whether this access and an earlier one, of that thread at that time, are in no order.
bool unordered(int thread, uint64_t at_epoch, unsigned synced) {
  return at_epoch == epoch && thread != current && (thread / WARP != current / WARP || synced == warps[current / WARP].synced);
}

void check_race(Byte& b, bool write, void* caller) {
  const int warp = current / WARP;
  const unsigned synced = warps[warp].synced, lane = 1u << current % WARP, warp_bit = 1u << warp;
  if (unordered(b.writer, b.written, b.write_synced)) {
    const Index other = fibers[b.writer].index;
    fault(caller, "%s shared memory that thread (%u, %u, %u) wrote, with no barrier between", write ? "overwrites" : "reads",
          other.x, other.y, other.z);
  }
  const bool new_lanes = b.read != epoch || b.reading_warp != warp || b.read_synced != synced;
  if (write) {
    if (b.read == epoch && (b.warps & ~warp_bit || (!new_lanes && b.lanes & ~lane)))
      fault(caller, "overwrites shared memory that another thread read, with no barrier between");
    b.written = epoch, b.write_synced = synced, b.writer = current;
  } else {
    b.warps = (b.read == epoch ? b.warps : 0) | warp_bit;
    b.lanes = (new_lanes ? 0 : b.lanes) | lane;
    b.read = epoch, b.read_synced = synced, b.reading_warp = warp;
  }
}

void check(char* address, uint64_t size, bool write, bool atomic, void* caller) {
  if (++accesses > FOREVER) fault(caller, "goes on for ever: it waits for another thread without a barrier, or loops");
  if (address >= __stop_cuda_shared || address + size <= __start_cuda_shared) return;
  const auto holds = [&](const Variable& v) { return address >= v.start && address + size <= v.start + v.size; };
  if (std::none_of(__start_cuda_variables, __stop_cuda_variables, holds))
    fault(caller, "%s %d bytes outside its shared memory", write ? "writes" : "reads", (int)size);
  for (char* b = address; b < address + size && !atomic; b++) check_race(bytes[b - __start_cuda_shared], write, caller);
}
}  // namespace

#define CALLER ((char*)__builtin_return_address(0) - 1)
extern "C" {
void __tsan_init() {}
#define HOOK(size) \
  void __tsan_read##size(void* address) { check((char*)address, size, false, false, CALLER); } \
  void __tsan_write##size(void* address) { check((char*)address, size, true, false, CALLER); }
HOOK(1) HOOK(2) HOOK(4) HOOK(8) HOOK(16)
void __tsan_read_range(void* address, uint64_t size) { check((char*)address, size, false, false, CALLER); }
void __tsan_write_range(void* address, uint64_t size) { check((char*)address, size, true, false, CALLER); }
void __ubsan_handle_out_of_bounds(void*, uint64_t index) {
  fault(CALLER, "uses index %lld of an array that is shorter", (long long)index);
}
void __ubsan_handle_type_mismatch_v1(void*, uint64_t address) {
  fault(CALLER, address ? "uses a misaligned address" : "uses a null pointer");
}
}

// ---- what kernels call ----------------------------------------------------------------------------------------------
void __syncthreads() { meet(block, "__syncthreads", CALLER); }

int __syncthreads_count(int predicate) {
  static int count;
  meet(block, "__syncthreads_count", CALLER);
  count = 0;
  meet(block, "__syncthreads_count", CALLER);
  count += predicate != 0;
  meet(block, "__syncthreads_count", CALLER);
  return count;
}

void check_mask(unsigned mask, void* caller) {
  if (mask != 0xffffffffu) fault(caller, "gives mask %08x; cuda_on_cpu.h knows only the full one", mask);
}

void __syncwarp(unsigned mask) {
  check_mask(mask, CALLER);
  meet(warps[current / WARP], SYNCWARP, CALLER);
}

namespace cuda_on_cpu {
int lane() { return current % WARP; }

void put_off(Copy copy) { fibers[current].copies.push_back({fibers[current].groups, copy}); }
void end_group() { fibers[current].groups++; }
bool next_copy(int pending, Copy* copy) {
  Fiber& own = fibers[current];
  if (own.copies.empty() || own.copies.front().first >= own.groups - pending) return false;
  *copy = own.copies.front().second;
  own.copies.pop_front();
  return true;
}

void check_atomic(const void* address, size_t size) { check((char*)address, size, true, true, CALLER); }

const uint64_t* exchange(const char* operation, unsigned mask, uint64_t value) {
  const int warp = current / WARP;
  check_mask(mask, CALLER);
  if (warps[warp].waiting.empty()) memset(slots[warp][turn[warp] ^= 1], 0xff, sizeof(slots[warp][0]));
  uint64_t* all = slots[warp][turn[warp]];
  all[current % WARP] = value;
  meet(warps[warp], operation, CALLER);
  return all;
}
}  // namespace cuda_on_cpu

// ---- what cpu_kernels.py calls --------------------------------------------------------------------------------------
namespace {
__attribute__((noinline)) bool run_block() {  // false: fault() ended it
  message[0] = 0;
  if (!_setjmp(finished)) resume_next();
  return !message[0];
}
}  // namespace

// Runs a grid; block and thread order are shuffled where seed >= 0. Returns null, or what went wrong, `where` in this library.
extern "C" const char* cuda_on_cpu_launch(void (*call)(void**), void** arguments, const unsigned* grid, const unsigned* threads,
                                          unsigned shared_bytes, long long seed, size_t* where) {
  kernel = call, parameters = arguments;
  gridDim = {grid[0], grid[1], grid[2]}, blockDim = {threads[0], threads[1], threads[2]};
  dynamic_variable.size = shared_bytes;
  if (!bytes) bytes = (Byte*)calloc(__stop_cuda_shared - __start_cuda_shared, sizeof(Byte));  // costs what is touched
  std::vector<unsigned> blocks(grid[0] * grid[1] * grid[2]);
  std::vector<int> order(threads[0] * threads[1] * threads[2]);
  std::iota(blocks.begin(), blocks.end(), 0);
  std::iota(order.begin(), order.end(), 0);
  std::mt19937 random(seed);
  if (seed >= 0) std::shuffle(blocks.begin(), blocks.end(), random);
  for (unsigned b : blocks) {
    if (seed >= 0) std::shuffle(order.begin(), order.end(), random);
    blockIdx = {b % grid[0], b / grid[0] % grid[1], b / grid[0] / grid[1]};
    for (Variable* v = __start_cuda_variables; v < __stop_cuda_variables; v++) memset(v->start, 0xff, v->size);
    block = {(int)order.size()};
    for (Group& w : warps) w = {};
    for (unsigned t = 0; t < order.size(); t++) {
      fibers[t].copies.clear(), fibers[t].groups = 0;
      fibers[t].index = {t % threads[0], t / threads[0] % threads[1], t / threads[0] / threads[1]};
      warps[t / WARP].live++;
    }
    ready.assign(order.begin(), order.end());
    epoch++;
    if (run_block()) continue;
    Dl_info library;
    dladdr(fault_caller, &library);
    *where = (char*)fault_caller - (char*)library.dli_fbase;
    return message;
  }
  return nullptr;
}
