// The exchange of the state between the blocks of a team: h, or the gradients of the gates.
//
// A publication consists of the shares of all blocks: h0, then h after each step. Its layout is that of product.cuh.
//   block    A single block holds everything: a barrier.
//   cluster  Each block writes its share into its own shared memory and, 16 bytes at a time, into all others'; the
//            stores complete the barrier of their destination buffer, and a block that waits for it has the data.
//            Two buffers suffice: a block publishes p + 2 after receiving p + 1 from all, and a block that sent p + 1
//            has read p. A block exits after receiving the last one from all: no store to it is in flight then.
//   grid     Each block writes its share into global memory, from which all read it. A word that has not arrived reads
//            as kEmpty, a NaN that is no element's encoding: the data are their own flag, and no acknowledgement is
//            needed. A block that publishes p has received p - 1 from all, so that all have read p - 2; it clears its
//            share of p - 2, the slot of p + 2, and fences, before it publishes p + 1. A block that polls for p + 2
//            has seen p + 1 and fenced since: it reads kEmpty or p + 2, never p - 2. Hence four slots. The fence
//            overlaps with the arrival of the others' shares.
#pragma once

#include "plan.h"
#include "primitives.cuh"
#include "wait.cuh"

namespace prnn::cuda {

constexpr uint32_t kEmpty = 0xFFFFFFFFu;
constexpr uint32_t kNan = 0x7FFF7FFFu;  // published in its place, as one float or as two halves

template <class E, int kColumns>
class Exchange {
 public:
  PRNN_DEVICE_MEMBER Exchange(const Plan& plan, const WaitLimit& limit, char* shared, const SharedMemory& at,
                              void* workspace)
      : plan(plan),
        limit(limit),
        barriers(reinterpret_cast<uint64_t*>(shared)),
        state(shared + at.state),
        state_size(at.state_size),
        buffers(at.buffers),
        rank(plan.rank(block())),
        slots(static_cast<char*>(workspace) + int64_t(plan.team(block())) * kSlots * at.state_size) {
    const int width = plan.k_groups / plan.groups;
    first = plan.first_group(rank) * width, last = plan.first_group(rank + 1) * width;
    for (int i = thread() * 16; i < buffers * state_size; i += kThreads * 16) shared_store(state + i, Words4{});
    if (plan.regime == Regime::cluster && thread() == 0) {
      barrier_init(barriers), barrier_init(barriers + 1);
      barrier_expect(barriers, others_bytes()), barrier_expect(barriers + 1, others_bytes());
    }
    if (plan.regime == Regime::cluster) sync_cluster();
    sync_block();
  }

  // Units g and g + 8 of a k group and one column, of the next publication.
  PRNN_DEVICE_MEMBER void put(int k_group, int column, E low, E high) const {
    const int at = ((k_group * kColumns + column) * kGroup + lane() / 4 * 2) * static_cast<int>(sizeof(E));
    if constexpr (sizeof(E) == 2) {
      const uint32_t word = low.bits | uint32_t(high.bits) << 16;
      if (plan.regime == Regime::grid)
        put_word(at, word);
      else
        shared_store(buffer() + at, word);
    } else {
      const Words2 words{bits_of<uint32_t>(low), bits_of<uint32_t>(high)};
      if (plan.regime == Regime::grid)
        put_word(at, words.word[0]), put_word(at + 4, words.word[1]);
      else
        shared_store(buffer() + at, words);
    }
  }

  // By all threads, after all calls of put.
  PRNN_DEVICE_MEMBER void publish() {
    if (plan.regime == Regime::grid) {
      exchange_fence();
    } else {
      sync_block();
      if (plan.regime == Regime::cluster) broadcast();
    }
    ++number;
  }

  // By all threads: waits for the last publication and returns it for product.cuh.
  PRNN_DEVICE_MEMBER const char* receive(int k_first, int k_count) {
    const int index = number - 1;
    char* received = state + index % buffers * state_size;
    if (plan.regime == Regime::cluster) {
      uint64_t* barrier = barriers + index % 2;
      const int phase = index / 2 % 2;
      const int expected = computed_here(thread() == 0 ? others_bytes() : 0);  // not after the wait
      if (!barrier_test(barrier, phase)) {
        Wait wait(limit);
        do wait.failed(index, -1);
        while (!barrier_try(barrier, phase));
      }
      if (expected) barrier_expect(barrier, expected);  // for the one after the next
    } else if (plan.regime == Regime::grid) {
      gather(received, slots + int64_t(index % kSlots) * state_size, k_first, k_count);
    }
    return received;
  }

  // Which of two buffers a step may use: not the one of the preceding step.
  PRNN_DEVICE_MEMBER int parity() const { return number % 2; }

 private:
  static constexpr int kPieces = kGroup * sizeof(E) / 16;  // of 16 bytes, in a column of a group

  PRNN_DEVICE_MEMBER char* buffer() const { return state + number % 2 * state_size; }
  PRNN_DEVICE_MEMBER int pieces(int k_groups) const { return k_groups * plan.columns * kPieces; }
  PRNN_DEVICE_MEMBER int others_bytes() const { return pieces(plan.k_groups - (last - first)) * 16; }
  // The offset of piece i of k groups from `start` on, skipping absent columns.
  PRNN_DEVICE_MEMBER int piece_at(int start, int i) const {
    const int column = i / kPieces, k_group = start + column / plan.columns;
    return ((k_group * kColumns + column % plan.columns) * kPieces + i % kPieces) * 16;
  }

  PRNN_DEVICE_MEMBER void put_word(int at, uint32_t word) const {
    exchange_store(slots + int64_t(number % kSlots) * state_size + at, word == kEmpty ? kNan : word);
    exchange_store(slots + int64_t((number + 2) % kSlots) * state_size + at, kEmpty);
  }

  PRNN_DEVICE_MEMBER void broadcast() const {
    const int count = pieces(last - first);
    for (int i = thread(); i < count * (plan.blocks - 1); i += kThreads) {
      char* from = buffer() + piece_at(first, i % count);
      remote_store(from, shared_load<Words4>(from), barriers + number % 2, (rank + 1 + i / count) % plan.blocks);
    }
  }

  PRNN_DEVICE_MEMBER static bool whole(const Words4& piece) {
    return piece.word[0] != kEmpty && piece.word[1] != kEmpty && piece.word[2] != kEmpty && piece.word[3] != kEmpty;
  }

  // The warps of a k slice load it together, each with several pieces in flight.
  PRNN_DEVICE_MEMBER void gather(char* to, const char* from, int k_first, int k_count) const {
    constexpr int kFlight = 8;
    const int count = pieces(k_count), stride = 32 * plan.row_warps;
    for (int i = warp() / plan.k_warps() * 32 + lane(); i < count; i += kFlight * stride) {
      Words4 piece[kFlight];
#pragma unroll
      for (int j = 0; j < kFlight; ++j)
        if (i + j * stride < count) piece[j] = exchange_load(from + piece_at(k_first, i + j * stride));
#pragma unroll
      for (int j = 0; j < kFlight; ++j) {
        if (i + j * stride >= count) continue;
        const int at = piece_at(k_first, i + j * stride);
        if (!whole(piece[j])) {
          Wait wait(limit);
          do {
            piece[j] = exchange_load(from + at);
            wait.failed(number - 1, at / 16);  // while the load is in flight
          } while (!whole(piece[j]));
        }
        shared_store(to + at, piece[j]);
      }
    }
    if (plan.row_warps > 1)
      sync_block();
    else
      sync_warp();
  }

  const Plan& plan;
  const WaitLimit& limit;
  uint64_t* barriers;
  char* state;
  int state_size, buffers, rank;
  char* slots;
  int first, last;  // the k groups this block publishes
  int number = 0;   // publications made
};

}  // namespace prnn::cuda
