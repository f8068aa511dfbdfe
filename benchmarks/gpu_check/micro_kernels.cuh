// The kernels of micro.cu. Each repeats one operation for `run.rounds` rounds; waits for other blocks time out after
// about a second, in all blocks.
#pragma once

#include <cooperative_groups.h>

#include "exchange_rounds.cuh"

namespace {

using namespace prnn::cuda;

constexpr int kFlight = 8;                        // loads in flight per thread
constexpr int kWordSlots = 4, kSlotWords = 1024;  // of put_to_seen

// Held while the kernel runs, by all threads.
class Stopwatch {
 public:
  PRNN_DEVICE_MEMBER explicit Stopwatch(const Run& run) : clocks(run.clocks) { note(0); }
  PRNN_DEVICE_MEMBER ~Stopwatch() { note(2); }

 private:
  PRNN_DEVICE_MEMBER void note(int at) const {
    if (block() != 0 || thread() != 0) return;
    unsigned long long time;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time)::"memory");
    clocks[at] = clock64(), clocks[at + 1] = time;
  }
  unsigned long long* clocks;
};

// ---- one multiprocessor

PRNN_KERNEL(kThreads) spin(Run run) {
  const Stopwatch stopwatch(run);
  const long long began = clock64();
  while (clock64() - began < 300000000) {
  }
}

PRNN_KERNEL(kThreads) block_barriers(Run run) {
  const Stopwatch stopwatch(run);
  for (int i = 0; i < run.rounds; ++i) sync_block();
}

// Two warps to a tensor core, eight independent products each.
PRNN_KERNEL(kThreads) products(Run run) {
  const Stopwatch stopwatch(run);
  float acc[8][4] = {};
  const uint32_t a[4] = {1, 2, 3, uint32_t(thread())}, b[2] = {4, 5};
  for (int i = 0; i < run.rounds; ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j) multiply_tile(acc[j], a, b, Bfloat16{});
  float sum = 0;
  for (int j = 0; j < 8; ++j) sum += acc[j][0];
  if (sum == 1) run.signals[0] = 1;  // never true: keeps the compiler from eliminating the products
}

PRNN_KERNEL(32) dependent_products(Run run) {
  const Stopwatch stopwatch(run);
  float acc[4] = {};
  const uint32_t a[4] = {1, 2, 3, uint32_t(thread())}, b[2] = {4, 5};
  for (int i = 0; i < run.rounds; ++i) multiply_tile(acc, a, b, Bfloat16{});
  if (acc[0] == 1) run.signals[0] = 1;
}

// All threads together read `bytes`, a multiple of 16384, 16 bytes at a time and without conflicts.
PRNN_KERNEL(kThreads) read_shared(Run run, int bytes) {
  const Stopwatch stopwatch(run);
  const uint32_t start = shared_address(shared_memory()) + thread() * 16;
  for (int i = thread() * 4; i < bytes / 4; i += kThreads * 4)
    shared_store(shared_memory() + i * 4, Words4{{0, 0, 0, 0}});
  sync_block();
  uint32_t sum = 0;
  for (int i = 0; i < run.rounds; ++i)
    for (int at = 0; at < bytes; at += kThreads * 16 * 4)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        uint32_t x, y, z, w;
        asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(x), "=r"(y), "=r"(z), "=r"(w)
                     : "r"(start + at + j * kThreads * 16)
                     : "memory");
        sum |= x | y | z | w;
      }
  if (sum != 0) run.signals[0] = 1;
}

// ---- through global memory

PRNN_KERNEL(32) chase(Run run, const uint32_t* next) {
  const Stopwatch stopwatch(run);
  uint32_t at = 0;
  for (int i = 0; i < run.rounds; ++i) at = exchange_load(next + at).word[0];
  if (at == kEmpty) run.signals[0] = 1;
}

// All blocks read the same `bytes`, as many loads under way as the grid regime has.
PRNN_KERNEL(kThreads) read_l2(Run run, const char* from, int bytes) {
  const Stopwatch stopwatch(run);
  uint32_t sum = kEmpty;
  for (int i = 0; i < run.rounds; ++i)
    for (int at = thread() * 16; at < bytes; at += kFlight * kThreads * 16) {
      Words4 piece[kFlight];
#pragma unroll
      for (int j = 0; j < kFlight; ++j) {
        piece[j] = Words4{{kEmpty, kEmpty, kEmpty, kEmpty}};
        if (at + j * kThreads * 16 < bytes) piece[j] = exchange_load(from + at + j * kThreads * 16);
      }
#pragma unroll
      for (int j = 0; j < kFlight; ++j)
        sum &= piece[j].word[0] & piece[j].word[1] & piece[j].word[2] & piece[j].word[3];
    }
  if (sum != kEmpty) run.signals[0] = 1;
}

// Every thread stores a word of its own and waits until all can see it.
PRNN_KERNEL(kThreads) store_and_fence(Run run, uint32_t* words) {
  const Stopwatch stopwatch(run);
  uint32_t* own = words + block() * kThreads + thread();
  for (int i = 0; i < run.rounds; ++i) {
    exchange_store(own, i);
    exchange_fence();
  }
}

PRNN_KERNEL(kThreads) grid_barriers(Run run) {
  const Stopwatch stopwatch(run);
  const auto grid = cooperative_groups::this_grid();
  for (int i = 0; i < run.rounds; ++i) grid.sync();
}

// Ping-pong: blocks 0 and `other` each put a word once they have seen the other's: two puts per round. Words are
// numbered, so that a stale word is detected even without a fence.
template <bool kFence, bool kClear>
PRNN_KERNEL(32)
put_to_seen(Run run, uint32_t* words, int other) {
  const Stopwatch stopwatch(run);
  if (thread() != 0 || (block() != 0 && block() != other)) return;
  BoundedWait bounded(run);
  uint32_t* own = words + (block() == 0 ? 0 : kWordSlots * kSlotWords);
  const uint32_t* others = words + (block() == 0 ? kWordSlots * kSlotWords : 0);
  const auto put = [&](uint32_t i) {
    exchange_store(own + i % kWordSlots * kSlotWords, i);
    if (kClear) exchange_store(own + (i + 2) % kWordSlots * kSlotWords, kEmpty);
    if (kFence) exchange_fence();
  };
  for (uint32_t i = 0; i < uint32_t(run.rounds); ++i) {
    if (block() == 0) put(i);
    bounded.wait([&] { return exchange_load(others + i % kWordSlots * kSlotWords).word[0] == i; });
    if (block() != 0) put(i);
  }
}

template <class E, int kWidth, bool kFences>
PRNN_KERNEL(kThreads)
grid_exchange(Run run, PRNN_OPERAND Plan plan, PRNN_OPERAND WaitLimit limit, void* workspace) {
  const Stopwatch stopwatch(run);
  grid_exchange_rounds<E, kWidth, kFences>(run, plan, limit, workspace);
}

// ---- through distributed shared memory

PRNN_KERNEL(kThreads) cluster_barriers(Run run) {
  const Stopwatch stopwatch(run);
  for (int i = 0; i < run.rounds; ++i) sync_cluster();
}

template <bool kRegisters>
PRNN_KERNEL(kThreads)
cluster_exchange(Run run, int cluster, int bytes) {
  const Stopwatch stopwatch(run);
  cluster_exchange_rounds<kRegisters>(run, cluster, bytes);
}

}  // namespace
