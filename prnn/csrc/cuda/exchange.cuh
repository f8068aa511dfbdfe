// How the blocks of a team tell each other their share of the state: h, or the gradients of the gates.
//
// A publication is one share of every block: h0, then h after each step. Its elements stand as product.cuh says.
//   block    One block has all of it: a barrier.
//   cluster  Each block writes its share into its own shared memory and, 16 bytes at a time, into all others'; the
//            stores complete the barrier of the buffer they go to, and who waits for that barrier has the data.
//            Two buffers suffice: a block publishes p + 2 when it has received p + 1 from all, and who sent p + 1 had
//            read p. A block ends when it has received the last one from all: nothing is under way to it then.
//   grid     Each block writes its share into global memory, whence all read it. A word that has not come yet reads
//            kEmpty, a NaN that no element is made of: the data are their own flag, and nobody waits for an
//            acknowledgement. Who publishes p has received p - 1 from all, so that all have read p - 2; it empties
//            its share of p - 2, where p + 2 will stand, and fences, before it publishes p + 1. Who looks for p + 2
//            has seen p + 1 and fenced since: it finds kEmpty or p + 2, never p - 2. Hence four slots. The fence runs
//            while the others' shares are under way.
#pragma once

#include "plan.h"
#include "primitives.cuh"
#include "wait.cuh"

namespace prnn::cuda {

constexpr uint32_t kEmpty = 0xFFFFFFFFu;
constexpr uint32_t kNan = 0x7FFF7FFFu;  // what is published instead, as one float or as two halves

template <class E, int kColumns>
class Exchange {
 public:
  PRNN_DEVICE_MEMBER Exchange(const Plan& plan, const Patience& patience, char* shared, const SharedMemory& at,
                              void* workspace)
      : plan(plan),
        patience(patience),
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

  // Units g and g + 8 of a k group and one column, of the publication to come.
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

  // All threads, when all have put.
  PRNN_DEVICE_MEMBER void publish() {
    if (plan.regime == Regime::grid) {
      exchange_fence();
    } else {
      sync_block();
      if (plan.regime == Regime::cluster) broadcast();
    }
    ++number;
  }

  // All threads: waits for the last publication; what product.cuh reads.
  PRNN_DEVICE_MEMBER const char* receive(int k_first, int k_count) {
    const int index = number - 1;
    char* received = state + index % buffers * state_size;
    if (plan.regime == Regime::cluster) {
      uint64_t* barrier = barriers + index % 2;
      const int phase = index / 2 % 2;
      const int expected = computed_here(thread() == 0 ? others_bytes() : 0);  // rather than after the wait
      if (!barrier_test(barrier, phase)) {
        Wait wait(patience);
        do wait.in_vain(index, -1);
        while (!barrier_try(barrier, phase));
      }
      if (expected) barrier_expect(barrier, expected);  // for the one after the next
    } else if (plan.regime == Regime::grid) {
      gather(received, slots + int64_t(index % kSlots) * state_size, k_first, k_count);
    }
    return received;
  }

  // Which of two buffers a step may use for itself: another one than the step before.
  PRNN_DEVICE_MEMBER int parity() const { return number % 2; }

 private:
  static constexpr int kPieces = kGroup * sizeof(E) / 16;  // of 16 bytes, in a column of a group

  PRNN_DEVICE_MEMBER char* buffer() const { return state + number % 2 * state_size; }
  PRNN_DEVICE_MEMBER int pieces(int k_groups) const { return k_groups * plan.columns * kPieces; }
  PRNN_DEVICE_MEMBER int others_bytes() const { return pieces(plan.k_groups - (last - first)) * 16; }
  // Of piece i of k groups that begin at `start`: the columns that are not there are left out.
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

  // The warps of a k slice share its loading; each has several pieces under way.
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
          Wait wait(patience);
          do {
            piece[j] = exchange_load(from + at);
            wait.in_vain(number - 1, at / 16);  // while the load is under way
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
  const Patience& patience;
  uint64_t* barriers;
  char* state;
  int state_size, buffers, rank;
  char* slots;
  int first, last;  // the k groups this block publishes
  int number = 0;   // publications made
};

}  // namespace prnn::cuda
