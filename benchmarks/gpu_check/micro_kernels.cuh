// The kernels of micro.cu. Each repeats one operation for `run.rounds` rounds; waits for other blocks time out after
// about a second, in all blocks.
#pragma once

#include <cooperative_groups.h>

#include "primitives.cuh"

namespace {

using namespace prnn::cuda;

constexpr int kThreads = 256;  // of a block, as in the recurrences
constexpr int kSlots = 4;      // publication slots in global memory; the recurrences have 24: grid_exchange
constexpr int kFlight = 8;     // loads in flight per thread, likewise
constexpr uint32_t kEmpty = 0xFFFFFFFFu;
constexpr int kSlotWords = 1024;  // of put_to_seen
constexpr long long kGiveUpCycles = 2000000000;

struct Run {
  int rounds;
  uint32_t* signals;           // [2] whether a wait was given up or wrong data came; words seen that were stale
  unsigned long long* clocks;  // [4] clock64 and the time in nanoseconds, when the first block began and when it ended
};

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

// The waits of one thread.
class BoundedWait {
 public:
  PRNN_DEVICE_MEMBER explicit BoundedWait(const Run& run) : signals(run.signals) {}
  // Waits until `seen`, or until a wait of any thread has timed out, after which no wait is started.
  template <class Seen>
  PRNN_DEVICE_MEMBER void wait(Seen seen) {
    if (over) return;
    long long began = 0;
    for (int polls = 1; !seen(); ++polls) {
      if (polls % 1024 != 0) continue;
      if (began == 0) began = clock64();
      if (clock64() - began < kGiveUpCycles && *static_cast<volatile uint32_t*>(signals) == 0) continue;
      give_up();
      return;
    }
  }
  PRNN_DEVICE_MEMBER void give_up() {
    over = true;
    atomicExch(signals, 1u);
  }
  bool over = false;

 private:
  uint32_t* signals;
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
  uint32_t* own = words + (block() == 0 ? 0 : kSlots * kSlotWords);
  const uint32_t* others = words + (block() == 0 ? kSlots * kSlotWords : 0);
  const auto put = [&](uint32_t i) {
    exchange_store(own + i % kSlots * kSlotWords, i);
    if (kClear) exchange_store(own + (i + 2) % kSlots * kSlotWords, kEmpty);
    if (kFence) exchange_fence();
  };
  for (uint32_t i = 0; i < uint32_t(run.rounds); ++i) {
    if (block() == 0) put(i);
    bounded.wait([&] { return exchange_load(others + i % kSlots * kSlotWords).word[0] == i; });
    if (block() != 0) put(i);
  }
}

// A simpler exchange than that of the grid regime: teams of `blocks` blocks; each block puts its share of `bytes`, and
// gathers all of them into shared memory. There are four slots; the words of one are cleared in every round, and there
// is a fence in every round or none. A thread waits for its pieces one after another. The regime clears eight of 24
// slots in every eighth round, with a fence, and loads all missing pieces again in a round of polling.
template <bool kFence>
PRNN_KERNEL(kThreads)
grid_exchange(Run run, char* slots, int blocks, int bytes) {
  const Stopwatch stopwatch(run);
  BoundedWait bounded(run);
  const int rank = block() % blocks, words = bytes / 4;
  const int first = rank * words / blocks, last = (rank + 1) * words / blocks;
  slots += int64_t(block() / blocks) * kSlots * bytes;
  int stale = 0;
  for (int round = 0; round < run.rounds; ++round) {
    char* now = slots + round % kSlots * bytes;
    char* later = slots + (round + 2) % kSlots * bytes;
    for (int i = first + thread(); i < last; i += kThreads) {
      exchange_store(now + i * 4, round);
      exchange_store(later + i * 4, kEmpty);
    }
    if (kFence) exchange_fence();
    const auto complete = [&](const Words4& piece) {
      return piece.word[0] == uint32_t(round) && piece.word[1] == uint32_t(round) && piece.word[2] == uint32_t(round) &&
             piece.word[3] == uint32_t(round);
    };
    // A word of four rounds ago would be taken for new by the regime, which looks for kEmpty alone.
    const auto look_again = [&](Words4& piece, const char* from) {
      for (const uint32_t word : piece.word) stale += word != uint32_t(round) && word != kEmpty;
      piece = exchange_load(from);
      return complete(piece);
    };
    char* received = shared_memory() + round % 2 * bytes;
    for (int i = thread(); i < bytes / 16; i += kFlight * kThreads) {
      Words4 piece[kFlight];
#pragma unroll
      for (int j = 0; j < kFlight; ++j)
        if (i + j * kThreads < bytes / 16) piece[j] = exchange_load(now + (i + j * kThreads) * 16);
#pragma unroll
      for (int j = 0; j < kFlight; ++j) {
        const int at = (i + j * kThreads) * 16;
        if (at >= bytes) continue;
        if (!complete(piece[j])) bounded.wait([&] { return look_again(piece[j], now + at); });
        shared_store(received + at, piece[j]);
      }
    }
    sync_block();
  }
  const char* received = shared_memory() + (run.rounds - 1) % 2 * bytes;
  if (shared_load<uint32_t>(received + thread() * 16) != uint32_t(run.rounds - 1)) bounded.give_up();
  if (stale > 0) atomicAdd(run.signals + 1, uint32_t(stale));
}

// ---- through distributed shared memory

PRNN_KERNEL(kThreads) cluster_barriers(Run run) {
  const Stopwatch stopwatch(run);
  for (int i = 0; i < run.rounds; ++i) sync_cluster();
}

// Whether a phase is complete: barrier_wait without the waiting.
PRNN_DEVICE bool barrier_complete(uint64_t* barrier, int parity) {
  uint32_t done = 1;
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
#endif
  return done;
}

// As the cluster regime does: each block sends `bytes` of its own to all others, and waits for theirs. Who has given up
// sends nothing more and expects nothing more.
PRNN_KERNEL(kThreads) cluster_exchange(Run run, int cluster, int bytes) {
  const Stopwatch stopwatch(run);
  BoundedWait bounded(run);
  char* memory = shared_memory();
  uint64_t* barriers = reinterpret_cast<uint64_t*>(memory);
  char* buffers = memory + 128;
  const int rank = block() % cluster, size = cluster * bytes, pieces = bytes / 16;
  for (int i = thread() * 16; i < 2 * size; i += kThreads * 16) shared_store(buffers + i, Words4{});
  if (thread() == 0) {
    for (int i = 0; i < 2; ++i) barrier_init(barriers + i);
    for (int i = 0; i < 2; ++i) barrier_expect(barriers + i, bytes * (cluster - 1));
  }
  sync_block();
  sync_cluster();
  for (int round = 0; round < run.rounds; ++round) {
    char* own = buffers + round % 2 * size + rank * bytes;
    uint64_t* barrier = barriers + round % 2;
    for (int i = thread(); i < pieces * (cluster - 1) && !bounded.over; i += kThreads) {
      char* from = own + i % pieces * 16;
      remote_store(from, shared_load<Words4>(from), barrier, (rank + 1 + i / pieces) % cluster);
    }
    bounded.wait([&] { return barrier_complete(barrier, round / 2 % 2); });
    if (thread() == 0 && !bounded.over) barrier_expect(barrier, bytes * (cluster - 1));
    sync_block();
  }
  sync_cluster();
}

}  // namespace
