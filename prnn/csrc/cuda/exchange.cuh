// The exchange of the state between the blocks of a team: h, or the gradients of the gates.
//
// A publication consists of the shares of all blocks: h0, then h after each step. Its layout is that of product.cuh,
// where a block's share is contiguous.
//   block    A single block holds everything: a barrier. So does each block of a cluster that exchanges sums of the
//            products instead (cluster_sums.cuh), of its own units.
//   cluster  Each block writes its share into its own shared memory and, 16 bytes at a time, into all others'; the
//            stores complete the barrier of their destination buffer, and a block that waits for it has the data.
//            Two buffers suffice: a block publishes p + 2 after receiving p + 1 from all, and a block that sent p + 1
//            has read p. A block exits after receiving the last one from all: no store to it is in flight then.
//   grid     Each block writes its share into global memory, from which all read it. A word that has not arrived reads
//            as kEmpty, a NaN that is no element's encoding: the data are their own flag, word by word, so that loads
//            and stores may be of any width, and no acknowledgement is needed. The words of a slot are cleared before
//            it is used again, kCleared publications at a time, by the thread that writes them:
//              A thread that has put p, a multiple of kCleared, clears its words of p + 8 to p + 15, and all threads
//              fence. The slots hold p - 16 to p - 9, which all have read: p - 1 has been received from all.
//              A thread that polls for p + 8 or later has seen p + 7 of all blocks, put after the fence that follows
//              the clearing, and has fenced itself since, after its put of p + 8. By the PTX memory model's causality
//              order (release pattern: clearing, fence, put; acquire pattern: poll, fence, poll) it reads kEmpty or
//              the new word, never an old one.
//            Hence three times kCleared slots, and a fence in every eighth step.
//
// The alternative to cleared words are counters: 16 bytes that arrive together, three words of data and the number of
// the publication, need neither clearing nor fence. They are a third more bytes, of which the exchange is made (a block
// loads at most 64 a cycle), do not match the operands of mma (two or four words a lane) and need 16-byte loads that
// are atomic, which the memory model grants to the .b128 type alone, not to vectors. What they would save: one store of
// a word in each step, off the critical path, and an eighth of a fence, which overlaps with the arrival of the others'
// words.
#pragma once

#include "arrivals.cuh"
#include "plan.h"
#include "primitives.cuh"
#include "wait.cuh"

namespace prnn::cuda {

constexpr uint32_t kEmpty = 0xFFFFFFFFu;
constexpr uint32_t kNan = 0x7FFF7FFFu;  // published in its place, as one float or as two halves

template <class E, int kColumns, Scheme kScheme>
class Exchange {
 public:
  static constexpr bool kGrid = kScheme == Scheme::grid;
  // Whether a warp receives into registers, as operands of its product: then absent columns have a place, too.
  static constexpr bool kDirect = kGrid && sizeof(E) == 2;

  // The block's number in its team, and the k groups it publishes.
  struct Share {
    int rank, first, last;
  };

  PRNN_DEVICE_MEMBER Exchange(const Plan& plan, const WaitLimit& limit, char* shared, const SharedMemory& at,
                              void* workspace, int team, int row, const Share& share)
      : plan(plan),
        limit(limit),
        arrivals(limit, shared),
        state(shared + at.state),
        state_size(at.state_size),
        columns(kDirect ? kColumns : plan.columns),
        row(row),
        slots(static_cast<char*>(workspace) + int64_t(team) * kSlots * at.state_size) {
    static_assert(kSlots % kCleared == 0);
    if constexpr (kScheme == Scheme::local) prepare_broadcast(share);
    sync_block();
  }

  // The offset of an element in a publication, and between the k groups.
  PRNN_DEVICE_MEMBER int place(int k_group, int column, int unit) const {
    return k_group * group_size() + (column * kGroup + unit) * static_cast<int>(sizeof(E));
  }
  PRNN_DEVICE_MEMBER int group_size() const { return columns * kGroup * static_cast<int>(sizeof(E)); }

  // Elements of a unit and column in kN k groups of the next publication, by all lanes of a warp: of 16 bits, adjacent
  // units are in adjacent lanes, which put both units' elements together. `at`: the place of the first; negative where
  // a lane has none.
  template <int kN>
  PRNN_DEVICE_MEMBER void put(int at, const E (&x)[kN]) const {
    uint32_t word[kN];
    if constexpr (sizeof(E) == 2) {
      const bool odd = lane() % 2;
#pragma unroll
      for (int q = 0; q < kN; q += 2) {
        const int last = q + 1 < kN ? q + 1 : q;  // an odd lane's k group
        const uint32_t other = shuffle_xor(uint32_t(odd ? x[q].bits : x[last].bits), 1);
        word[q] = odd ? other | uint32_t(x[last].bits) << 16 : x[q].bits | other << 16;
      }
    } else {
#pragma unroll
      for (int q = 0; q < kN; ++q) word[q] = bits_of<uint32_t>(x[q]);
    }
    each_word<kN>(at, [&](int q, int at) {
      if constexpr (kGrid)
        exchange_store(slots + (now + unsigned(at)), word[q] == kEmpty ? kNan : word[q]);
      else
        shared_store(buffer() + at, word[q]);
    });
  }

  // By all threads, after put. `clears` calls clear(), now and then: of the kCleared slots that are used after the next
  // kCleared, among which none is the last (they are a multiple).
  template <class Clears>
  PRNN_DEVICE_MEMBER void publish(const Clears& clears) {
    if constexpr (kGrid) {
      if (number % kCleared == 0) {
        clears();
        exchange_fence();
      }
      last = now, now += unsigned(state_size);
      if (now == end()) now = 0;
    } else {
      sync_block();
      if (broadcasts()) broadcast();
    }
    ++number;
  }
  // The words of `put`, in the slots that publish() names.
  template <int kN>
  PRNN_DEVICE_MEMBER void clear(int at) const {
    const unsigned ahead = now + kCleared * unsigned(state_size);
    char* first = slots + (ahead < end() ? ahead : ahead - end());
    each_word<kN>(at, [&](int, int at) {
      char* to = first + at;
#pragma unroll
      for (int i = 0; i < kCleared; ++i, to += state_size) exchange_store(to, kEmpty);
    });
  }

  // The number of the last publication.
  PRNN_DEVICE_MEMBER unsigned published() const { return number - 1; }

  // By all threads: waits for the last publication and returns it, in shared memory.
  PRNN_DEVICE_MEMBER const char* receive(int k_first, int k_count) {
    static_assert(!kDirect);
    char* received = state + (kGrid && plan.row_warps == 1 ? 0 : static_cast<int>(published() % 2) * state_size);
    if constexpr (kGrid) {
      gather(received, slots + last, k_first * group_size(), k_count * group_size());
    } else if (broadcasts()) {
      arrivals.wait(published());
    }
    return received;
  }

  // By all lanes of a warp: waits for words of the last publication, those of this lane's column of n k groups and of
  // the eighth column after it. `at`: the place of the lane's words in the first of them.
  template <int kN, int kTiles>
  PRNN_DEVICE_MEMBER void receive(int at, int n, Words2 (&words)[kN][kTiles]) const {
    static_assert(kDirect);
    const char* from = slots + (last + unsigned(at));
    const auto place = [&](int j, int tile) { return j * group_size() + tile * (8 * kGroup * 2); };
    const auto load = [&](int j, int tile, bool wanted) {
      exchange_load_if(wanted, words[j][tile], from + place(j, tile));
    };
    const auto absent = [&](int j, int tile) {
      return words[j][tile].word[0] == kEmpty || words[j][tile].word[1] == kEmpty;
    };
    // Of n, in parts: what a predicate leaves out takes its time, too.
    const auto each = [&](const auto& body) {
      constexpr int kSome = 8;
#pragma unroll
      for (int some = 0; some < kN; some += kSome) {
        if (some >= n) break;
#pragma unroll
        for (int j = some; j < some + kSome && j < kN; ++j)
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile) body(j, tile);
      }
    };
    const auto any_absent = [&] {
      bool any = false;
      each([&](int j, int tile) { any |= absent(j, tile); });
      return any_lane(any);
    };
    each([&](int j, int tile) {
      words[j][tile] = Words2{};
      load(j, tile, j < n && lane() / 4 + 8 * tile < plan.columns);
    });
    if (!any_absent()) return;
    Wait wait(limit);
    do {
      exchange_pause();
      each([&](int j, int tile) { load(j, tile, absent(j, tile)); });  // all that is missing in one round
      if (wait.expired())
        each([&](int j, int tile) {
          if (absent(j, tile)) give_up(limit, static_cast<int>(published()), (at + place(j, tile)) / 16);
        });
    } while (any_absent());
  }

  // Which of two buffers a step may use: not the one of the preceding step.
  PRNN_DEVICE_MEMBER int parity() const { return static_cast<int>(number % 2); }

 private:
  PRNN_DEVICE_MEMBER bool broadcasts() const { return kScheme == Scheme::local && plan.regime == Regime::cluster; }
  PRNN_DEVICE_MEMBER char* buffer() const { return state + parity() * state_size; }
  PRNN_DEVICE_MEMBER unsigned end() const { return kSlots * unsigned(state_size); }  // below 2^32: H is at most 2^16

  // The words of a publication that a lane writes: body(q, its place).
  template <int kN, class Body>
  PRNN_DEVICE_MEMBER void each_word(int at, const Body& body) const {
    if (at < 0) return;
    if constexpr (sizeof(E) == 2) {
      const int odd = lane() % 2;
      at += odd * (group_size() - 2);  // of the even unit, in the next k group
#pragma unroll
      for (int q = 0; q + 1 < kN; q += 2) body(q, at + q * group_size());
      if (kN % 2 && !odd) body(kN - 1, at + (kN - 1) * group_size());
    } else {
#pragma unroll
      for (int q = 0; q < kN; ++q) body(q, at + q * group_size());
    }
  }

  // A cluster's blocks are a power of two. As many warps as there are other blocks to send to, up to eight, or two or
  // four times as many, send to different ones.
  PRNN_DEVICE_MEMBER void prepare_broadcast(const Share& share) {
    own_at = share.first * group_size(), own_size = (share.last - share.first) * group_size();
    if (!broadcasts()) return;
    const int to = plan.blocks == 2 ? 1 : plan.blocks < kWarps ? plan.blocks : kWarps;
    const int each = to == 1 ? 8 : to == 4 ? 2 : 1;
    rank_step = to, first_rank = share.rank + 1 + warp() / each, last_rank = share.rank + plan.blocks;
    piece_step = each * 32 * 16, first_piece = (warp() % each * 32 + lane()) * 16;
    arrivals.prepare(state_size - own_size);
  }
  PRNN_DEVICE_MEMBER void broadcast() const {
    char* own = buffer() + own_at;
    uint64_t* barrier = arrivals.barrier(number);
    for (int at = first_piece; at < own_size; at += piece_step) {
      const Words4 piece = shared_load<Words4>(own + at);
      for (int rank = first_rank; rank < last_rank; rank += rank_step)
        remote_store(own + at, piece, barrier, rank & (plan.blocks - 1));
    }
  }

  PRNN_DEVICE_MEMBER static bool whole(const Words4& piece) {
    return piece.word[0] != kEmpty && piece.word[1] != kEmpty && piece.word[2] != kEmpty && piece.word[3] != kEmpty;
  }

  // The warps of a k slice load its `size` bytes together, each with several pieces in flight, into shared memory.
  PRNN_DEVICE_MEMBER void gather(char* to, const char* from, int first, int size) const {
    constexpr int kFlight = 8;
    const int step = 32 * 16 * plan.row_warps;
    for (int at = (row * 32 + lane()) * 16; at - lane() * 16 < size; at += kFlight * step) {
      Words4 piece[kFlight];
      const auto load = [&](int j, bool wanted) { exchange_load_if(wanted, piece[j], from + first + at + j * step); };
      const auto absent = [&](int j) { return !whole(piece[j]); };
      const auto any_absent = [&] {
        bool any = false;
#pragma unroll
        for (int j = 0; j < kFlight; ++j) any |= absent(j);
        return any;
      };
#pragma unroll
      for (int j = 0; j < kFlight; ++j) {
        piece[j] = Words4{};
        load(j, at + j * step < size);
      }
      if (any_lane(any_absent())) {
        Wait wait(limit);
        do {
          exchange_pause();
#pragma unroll
          for (int j = 0; j < kFlight; ++j) load(j, absent(j));
          if (wait.expired()) {
#pragma unroll
            for (int j = 0; j < kFlight; ++j)
              if (absent(j)) give_up(limit, static_cast<int>(published()), (first + at + j * step) / 16);
          }
        } while (any_lane(any_absent()));
      }
#pragma unroll
      for (int j = 0; j < kFlight; ++j)
        if (at + j * step < size) shared_store(to + first + at + j * step, piece[j]);
    }
    if (plan.row_warps > 1)
      sync_block();
    else
      sync_warp();
  }

  const Plan& plan;
  const WaitLimit& limit;
  Arrivals arrivals;
  char* state;
  int state_size, columns, row;
  char* slots;
  unsigned number = 0;         // publications made
  unsigned now = 0, last = 0;  // offsets of the slots of the next publication and of the last one
  // Of a cluster: the block's share, and what of it this thread sends to whom.
  int own_at, own_size, first_rank, last_rank, rank_step, first_piece, piece_step;
};

}  // namespace prnn::cuda
