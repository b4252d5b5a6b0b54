// The scheduler: each CUDA thread is a fibre that runs until it waits for others. Compiled without sanitizers, whatever
// the kernels are compiled with: it is the hardware, not a part of what is tested.
//
// Code that runs within a fibre neither allocates nor calls memcpy and the like: ThreadSanitizer would see it through
// its interceptors, and take the emulator's own data for a race.
#include "cuda_emulator.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"
#include "options.h"
#include "sanitizers.h"
#include "shared_memory.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace fusedloss::emulator {
namespace {

constexpr int kWarpSize = 32;
constexpr int kMaxThreads = 1024;
constexpr unsigned kMaxDepth = 64;  // threads of a block along z
constexpr unsigned kMaxGridX = 2147483647, kMaxGridYZ = 65535;

enum class State { ready, at_barrier, in_warp_operation, ended };

struct Thread {
  Fiber fiber;
  State state;
  int id;  // within the block
  uint3 index;
  Location where;  // of the barrier or warp operation that it waits in
  // The warp operation it waits in.
  WarpOperation operation;
  unsigned mask;
  int source;
  uint64_t value, received;
  void* tag;
};

// Lanes as bits.
struct Warp {
  unsigned waiting;   // in a warp operation
  unsigned expected;  // named in the masks of those
  unsigned at_barrier;
  unsigned ended;
  int operations;
};

// What runs a block. ThreadSanitizer is slow to make threads, so there are not new ones for each block, but two teams
// that take turns. What a team does is ordered after what it did before: races are found between blocks of different
// teams, and each order of blocks makes others of them.
struct Team {
  std::vector<std::unique_ptr<Thread>> threads;  // as many as any block had; the running block's come first
  SharedMemory shared;
  // Tags for what the last block did and for what this one does, in turn: one for both would order threads of this
  // block that start late after those that started early.
  uint64_t done[2] = {};
  int blocks = 0;

  void* done_before() { return &done[blocks % 2]; }
  void* done_now() { return &done[(blocks + 1) % 2]; }

  Thread& operator[](int id) { return *threads[size_t(id)]; }
};

struct Failure {
  const char* what = nullptr;
  Location where{};
  const char* name = "";  // of a variable
  const Thread* other = nullptr;
};

int order = 0;
Statistics counts;
thread_local cudaError_t last_error = cudaSuccess;

// One launch at a time, and of its threads one at a time: all of this is plain data.
std::mutex launching;
Team teams[2];
Team* team = &teams[0];
int count = 0;  // threads of a block; 0 outside of a launch
Warp warps[kMaxThreads / kWarpSize];
Thread* current = nullptr;
int waiting = 0;  // at the barrier
int ended = 0;
int barriers = 0;
Failure failure;
void (*body)(void*);
void* context;
uint64_t start_of_block;  // a tag for ThreadSanitizer

unsigned bit(const Thread& thread) { return 1u << thread.id % kWarpSize; }
Warp& warp_of(const Thread& thread) { return warps[thread.id / kWarpSize]; }
Thread& lane_of_warp(const Thread& thread, int lane) { return (*team)[thread.id / kWarpSize * kWarpSize + lane]; }

std::string text(Location where) {
  return std::string(where.file_name()) + ":" + std::to_string(where.line()) + ", in " + where.function_name();
}

std::string text(uint3 index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

std::string message() {
  std::string result = std::string("emulated CUDA: ") + failure.what + failure.name + "\n  at " + text(failure.where);
  if (count) result += "\n  block " + text(blockIdx);
  if (current) result += ", thread " + text(current->index);
  if (const Thread* other = failure.other) {
    result += "\n  thread " + text(other->index);
    result += other->state == State::ended ? " has returned" : " waits at " + text(other->where);
  }
  return result;
}

// From here to shared_variable() and check_aligned(): code that runs within fibres.

// To the scheduler, until the thread's turn comes again.
void suspend() {
  // Acquired by whoever comes after. That may find the thread in the middle, if another one failed.
  release(team->done_now());
  current->fiber.suspend();
}

// Leaves the fibre for good: the scheduler throws the Error, on its own stack.
[[noreturn]] void fail(const char* what, Location where, const Thread* other = nullptr, const char* name = "") {
  failure = {what, where, name, other};
  if (!current) throw Error(message());  // not in a kernel
  suspend();
  std::abort();
}

// The first thread of the warp whose lane is in `lanes`.
const Thread* first_of(unsigned lanes) { return &lane_of_warp(*current, std::countr_zero(lanes)); }

const Thread* first_with(State state) {
  for (int i = 0; i < count; ++i)
    if ((*team)[i].state == state) return &(*team)[i];
  return nullptr;
}

bool same(Location a, Location b) { return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0; }

void run_thread() {
  acquire(&start_of_block);
  acquire(team->done_before());
  body(context);
  Warp& warp = warp_of(*current);
  if (warp.expected & bit(*current)) {
    for (unsigned lanes = warp.waiting; lanes; lanes &= lanes - 1)
      if (first_of(lanes)->mask & bit(*current))
        fail("a thread returned while others of its warp wait for it", first_of(lanes)->where, first_of(lanes));
  }
  if (const Thread* other = waiting ? first_with(State::at_barrier) : nullptr)
    fail("a thread returned while others wait for it at a barrier", other->where, other);
  release(team->done_now());
  current->state = State::ended;
  warp.ended |= bit(*current);
  ++ended;
  current->fiber.finish();
}

// Hands each lane of `mask`, all of which wait, the value that it asked for.
void complete_warp_operation(Warp& warp, unsigned mask) {
  for (unsigned lanes = mask; lanes; lanes &= lanes - 1) {
    Thread& thread = lane_of_warp(*current, std::countr_zero(lanes));
    thread.received = lane_of_warp(*current, thread.source).value;
    thread.state = State::ready;
  }
  warp.waiting &= ~mask;
  warp.expected &= ~mask;
  ++counts.warp_operations;
}

}  // namespace

uint64_t exchange(WarpOperation operation, unsigned mask, uint64_t value, int source, Location where) {
  Warp& warp = warp_of(*current);
  Thread& self = *current;
  if (!(mask & bit(self))) fail("the mask of a warp operation lacks the lane that calls it", where);
  if (!(mask >> source & 1)) fail("a shuffle reads from a lane outside of its mask", where);
  if (warp.ended & mask) fail("a warp operation waits for a thread that returned", where, first_of(warp.ended & mask));
  if (warp.at_barrier & mask)
    fail("a warp operation waits for a thread that is at a barrier", where, first_of(warp.at_barrier & mask));
  // Masks of operations under way are disjoint, or else those are one operation.
  const Thread* partner = nullptr;
  if (warp.expected & mask)
    for (unsigned lanes = warp.waiting; lanes && !partner; lanes &= lanes - 1)
      if (first_of(lanes)->mask & mask) partner = first_of(lanes);
  if (partner && (partner->mask != mask || partner->operation != operation || !same(partner->where, where)))
    fail("lanes wait for each other in different warp operations or with different masks", where, partner);

  self.state = State::in_warp_operation;
  self.where = where;
  self.operation = operation;
  self.mask = mask;
  self.source = source;
  self.value = value;
  // Every operation has a tag of its own (so many later, lanes have long left the last one that had it): with one for
  // all, a lane that is late to leave would be ordered after what others do next.
  constexpr int kTagsOfWarp = 64;
  self.tag = partner ? partner->tag
                     : team->shared.tag(2 + self.id / kWarpSize * kTagsOfWarp + warp.operations++ % kTagsOfWarp);
  warp.waiting |= bit(self);
  warp.expected |= mask;
  // Shuffles exchange values, but only __syncwarp orders memory.
  if (operation == WarpOperation::synchronize) release(self.tag);
  if ((warp.waiting & mask) == mask) complete_warp_operation(warp, mask);
  suspend();
  if (operation == WarpOperation::synchronize) acquire(self.tag);
  return self.received;
}

void synchronize_block(Location where) {
  Warp& warp = warp_of(*current);
  if (ended) fail("a barrier waits for a thread that returned", where, first_with(State::ended));
  if (warp.expected & bit(*current)) {
    for (unsigned lanes = warp.waiting; lanes; lanes &= lanes - 1)
      if (first_of(lanes)->mask & bit(*current))
        fail("a thread is at a barrier while others of its warp wait for it", where, first_of(lanes));
  }
  if (waiting) {
    const Thread* other = first_with(State::at_barrier);
    if (!same(other->where, where)) fail("threads of a block are at different barriers", where, other);
  }
  // Two tags in turn, for the reason given above.
  void* tag = team->shared.tag(barriers % 2);
  warp.at_barrier |= bit(*current);
  ++waiting;
  release(tag);
  current->state = State::at_barrier;
  current->where = where;
  suspend();
  acquire(tag);
}

void* shared_variable(const void* key, const char* name, size_t bytes, Location where) {
  void* result = team->shared.variable(key, name, bytes, where);
  if (!result) fail("more shared memory than 48 KiB or 32 arrays: ", where, nullptr, name);
  return result;
}

void check_aligned(const void* pointer, size_t bytes, Location where) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes) fail("access to a misaligned address", where);
}

// The rest runs on the scheduler's own stack.
namespace {

void open_barrier() {
  for (int i = 0; i < count; ++i) (*team)[i].state = State::ready;
  for (Warp& warp : warps) warp.at_barrier = 0;
  waiting = 0;
  ++barriers;
  ++counts.barriers;
}

void start_threads() {
  while (team->threads.size() < size_t(count)) team->threads.push_back(std::make_unique<Thread>());
  release(&start_of_block);
  ++team->blocks;
  team->shared.start_block();
  std::fill(std::begin(warps), std::end(warps), Warp{});
  waiting = ended = barriers = 0;
  for (int id = 0; id < count; ++id) {
    Thread& thread = (*team)[id];
    const unsigned i = unsigned(id);
    thread.id = id;
    thread.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
    thread.state = State::ready;
    thread.fiber.prepare(run_thread);
  }
}

void run_block(std::mt19937& random) {
  start_threads();
  std::vector<int> turns(static_cast<size_t>(count));
  std::iota(turns.begin(), turns.end(), 0);
  if (order == 1) std::reverse(turns.begin(), turns.end());
  while (ended < count) {
    if (order >= 2) std::shuffle(turns.begin(), turns.end(), random);
    bool progress = false;
    for (const int id : turns) {
      current = &(*team)[id];
      if (current->state != State::ready) continue;
      progress = true;
      threadIdx = current->index;
      current->fiber.resume();
      if (failure.what) throw Error(message());
      if (waiting == count) open_barrier();
    }
    // Whoever waits for a thread that will not come is reported as soon as that is certain.
    if (!progress) throw std::logic_error("emulated CUDA: all threads wait, and it is not known what for");
  }
  current = nullptr;
  if (const auto* variable = team->shared.overrun()) {
    failure = {"written outside of the shared array ", variable->where, variable->name};
    throw Error(message());
  }
  ++counts.blocks;
  counts.shared_bytes = std::max(counts.shared_bytes, team->shared.bytes());
}

void run_grid() {
  const uint64_t x = gridDim.x, y = gridDim.y, blocks = x * y * gridDim.z;
  // From `first` on in steps that visit each block once: as good as shuffled, without a list of 2^31 blocks.
  uint64_t first = 0, step = 1;
  if (order == 1) first = step = blocks - 1;
  if (order >= 2) {
    std::mt19937 random{unsigned(order)};
    first = random() % blocks;
    step = random() % blocks;
    while (std::gcd(step, blocks) != 1) ++step;
  }
  uint64_t i = first;
  for (uint64_t k = 0; k < blocks; ++k, i = (i + step) % blocks) {
    if (under_thread_sanitizer()) team = &teams[k % 2];
    blockIdx = {unsigned(i % x), unsigned(i / x % y), unsigned(i / (x * y))};
    std::mt19937 random(unsigned(order) * 7919u + unsigned(i));
    run_block(random);
  }
}

// What a GPU itself refuses.
bool valid(dim3 grid, dim3 block) {
  const uint64_t size = uint64_t(block.x) * block.y * block.z;
  return size > 0 && size <= kMaxThreads && block.x <= kMaxThreads && block.y <= kMaxThreads && block.z <= kMaxDepth &&
         grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x <= kMaxGridX && grid.y <= kMaxGridYZ && grid.z <= kMaxGridYZ;
}

// Ends a launch, however it ends.
struct Cleanup {
  ~Cleanup() {
    current = nullptr;
    count = 0;

    // Only now: the teams are not ordered among each other.
    for (Team& each : teams) acquire(each.done_now());
  }
};

}  // namespace

cudaError_t run(dim3 grid, dim3 block, void (*thread_body)(void*), void* body_context) {
  if (!valid(grid, block)) return last_error = cudaErrorInvalidConfiguration;
  const std::lock_guard lock(launching);
  const unsigned size = block.x * block.y * block.z;
  if (size % kWarpSize)
    throw Error("emulated CUDA: a block of " + std::to_string(size) + " threads has a part of a warp");
  failure = {};
  count = int(size);
  body = thread_body;
  context = body_context;
  gridDim = grid;
  blockDim = block;
  const Cleanup cleanup;
  ++counts.launches;
  run_grid();
  return cudaSuccess;
}

void set_order(int value) {
  const std::lock_guard lock(launching);
  order = value;
}

Statistics statistics() {
  const std::lock_guard lock(launching);
  return counts;
}

}  // namespace fusedloss::emulator

cudaError_t cudaGetLastError() { return std::exchange(fusedloss::emulator::last_error, cudaSuccess); }

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}
