// The exchanges that micro.cu measures, made of csrc/cuda/primitives.cuh alone: tests/cuda_emulation runs them, too.
#pragma once

#include <type_traits>

#include "exchange.cuh"

namespace {

using namespace prnn::cuda;

constexpr uint64_t kGiveUpNanoseconds = 1000000000;

struct Run {
  int rounds;
  uint32_t* signals;           // [1] whether a wait was given up or wrong data came
  unsigned long long* clocks;  // [4] clock64 and the time in nanoseconds, when the first block began and when it ended
};

// The waits of one thread.
class BoundedWait {
 public:
  PRNN_DEVICE_MEMBER explicit BoundedWait(const Run& run) : signals(run.signals) {}
  // Waits until `seen`, or until a wait of any thread has timed out, after which no wait is started.
  template <class Seen>
  PRNN_DEVICE_MEMBER void wait(Seen seen) {
    if (over) return;
    uint64_t began = 0;
    for (int polls = 1; !seen(); ++polls) {
      if (polls % 1024 != 0) continue;
      if (began == 0) began = nanoseconds();
      if (nanoseconds() - began < kGiveUpNanoseconds && *signals == 0) continue;
      give_up();
      return;
    }
  }
  PRNN_DEVICE_MEMBER void give_up() {
    over = true;
    *signals = 1;
  }
  bool over = false;

 private:
  volatile uint32_t* signals;
};

// ---- the grid regime's, by its own class

constexpr int kExchangeColumns = 8;

// A plan of which only the exchange is of interest. `width`: k groups of a group of units: 1 in a forward pass, the
// number of gates in a backward pass. A block has at most two groups, of which each of its warps writes two columns of
// one.
inline Plan exchange_plan(int teams, int blocks, int row_warps, int groups, int width, bool float32) {
  Plan plan{};
  plan.regime = Regime::grid, plan.scheme = Scheme::grid, plan.shape = float32 ? 1 : 0;  // both of eight columns
  plan.row_warps = row_warps, plan.columns = kExchangeColumns;
  plan.teams = plan.tiles = teams, plan.directions = plan.heads = 1, plan.blocks = blocks;
  plan.groups = groups, plan.k_groups = groups * width;
  return plan;
}
PRNN_BOTH inline SharedMemory exchange_memory(const Plan& plan, bool float32) {
  return {plan, Scheme::grid, plan.shape, 1, 0, plan.warp_k_groups(), true, float32};
}

// Each round is a publication, received as the recurrences do. kFences: also a fence in every round, besides the one of
// every kCleared rounds: what it adds is seven eighths of what the latter costs.
template <class E, int kWidth, bool kFences>
PRNN_DEVICE void grid_exchange_rounds(const Run& run, const Plan& plan, const WaitLimit& limit, void* workspace) {
  using Channel = Exchange<E, kExchangeColumns, Scheme::grid>;
  constexpr int kFlight = kWidth == 1 ? 8 : 16;  // k groups; as many as team.cuh has for an LSTM
  const int team = plan.team(block()), rank = block() - team * plan.blocks;
  const int first_group = plan.first_group(rank), last_group = plan.first_group(rank + 1);
  const int k_warps = plan.k_warps(), row = warp() / k_warps, own = plan.warp_k_groups();
  const int first = warp() % k_warps * own, rest = plan.k_groups - first;
  const int count = rest < 0 ? 0 : rest < own ? rest : own;
  const SharedMemory at = exchange_memory(plan, !Channel::kDirect);
  Channel exchange(plan, limit, shared_memory(), at, workspace, team, row,
                   {rank, first_group * kWidth, last_group * kWidth});
  const int group = first_group + warp() * 2 / kWarps;
  const bool writes = group < last_group;
  if (Channel::kDirect && plan.row_warps > 1 && !writes) return;  // as Team::idle
  const int write_at =
      writes ? exchange.place(group * kWidth, warp() * 2 % kExchangeColumns + lane() / 16, lane() % 16) : -1;
  const int read_at = exchange.place(first, lane() / 4, lane() % 4 * 4);
  uint32_t wrong = 0;
  for (int round = 0; round < run.rounds; ++round) {
    // Never kEmpty, and not what the slot had before.
    const uint32_t word = Channel::kDirect ? (round & 0x7FFF) * 0x10001u : uint32_t(round);
    E published[kWidth];
    for (E& x : published) {
      if constexpr (Channel::kDirect)
        x.bits = static_cast<uint16_t>(word);
      else
        x = bits_of<float>(word);
    }
    exchange.put(write_at, published);
    exchange.publish([&] { exchange.template clear<kWidth>(write_at); });
    if (kFences) exchange_fence();
    if constexpr (Channel::kDirect) {
#pragma unroll 1
      for (int k = 0; k < count; k += kFlight) {
        Words2 words[kFlight][1];
        exchange.receive(read_at + k * exchange.group_size(), count - k, words);
#pragma unroll
        for (int j = 0; j < kFlight; ++j)
          if (k + j < count) wrong |= (words[j][0].word[0] ^ word) | (words[j][0].word[1] ^ word);
      }
    } else {
      const char* from = exchange.receive(first, count) + read_at;
      for (int k = 0; k < count; ++k)
        for (const uint32_t x : shared_load<Words4>(from + k * exchange.group_size()).word) wrong |= x ^ word;
    }
    sync_named(1 + row, 32 * k_warps);  // a publication follows the whole of the preceding one
  }
  if (wrong) *run.signals = 1;
}

// ---- through distributed shared memory

// Each block sends `bytes` of its own, and waits for those of all blocks.
//   from shared memory  as the cluster regime does, to all others; a thread loads each piece again for each block
//   kRegisters          16 bytes a lane, 512 contiguous bytes a warp, to all blocks, the own one among them; eight
//                       warps where `bytes` is 4096. The times of two sizes tell latency and bytes a cycle into a block
// Who has given up sends nothing more and expects nothing more.
template <bool kRegisters>
PRNN_DEVICE void cluster_exchange_rounds(const Run& run, int cluster, int bytes) {
  BoundedWait bounded(run);
  char* memory = shared_memory();
  uint64_t* barriers = reinterpret_cast<uint64_t*>(memory);
  char* buffers = memory + 128;
  const int rank = block() % cluster, size = cluster * bytes, pieces = bytes / 16;
  const int expected = bytes * (kRegisters ? cluster : cluster - 1);
  const uint32_t mark = uint32_t(rank) + 1;
  const Words4 piece{{mark, mark, mark, mark}};
  for (int i = thread() * 16; i < 2 * size; i += kThreads * 16)
    shared_store(buffers + i, !kRegisters && i % size / bytes == rank ? piece : Words4{});
  if (thread() == 0) {
    for (int i = 0; i < 2; ++i) barrier_init(barriers + i);
    for (int i = 0; i < 2; ++i) barrier_expect(barriers + i, expected);
  }
  sync_block();
  sync_cluster();
  for (int round = 0; round < run.rounds; ++round) {
    char* own = buffers + round % 2 * size + rank * bytes;
    uint64_t* barrier = barriers + round % 2;
    if constexpr (kRegisters) {
      if (thread() < pieces)
        for (int i = 0; i < cluster && !bounded.over; ++i)
          remote_store(own + thread() * 16, piece, barrier, (rank + warp() + i) & (cluster - 1));
    } else {
      for (int i = thread(); i < pieces * (cluster - 1) && !bounded.over; i += kThreads) {
        char* from = own + i % pieces * 16;
        remote_store(from, shared_load<Words4>(from), barrier, (rank + 1 + i / pieces) % cluster);
      }
    }
    bounded.wait([&] { return barrier_try(barrier, round / 2 % 2); });
    if (thread() == 0 && !bounded.over) barrier_expect(barrier, expected);
    sync_block();
  }
  sync_cluster();
  if (bounded.over || run.rounds < 2) return;
  for (int i = thread() * 16; i < 2 * size; i += kThreads * 16)
    for (const uint32_t word : shared_load<Words4>(buffers + i).word)
      if (word != uint32_t(i % size / bytes) + 1) bounded.give_up();
}

}  // namespace
