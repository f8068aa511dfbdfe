// The exchange of sums between the blocks of a cluster, in backward passes of several gates.
//
// A block multiplies the gates' gradients of its own units, which stay with it, with their rows of W: its shares of the
// gradients of h of all units. It sends each block the shares of that block's units, itself included, straight from the
// accumulators; each block sums what it has received, in the order of the ranks. For a unit and column a block receives
// 4 bytes from each of P blocks. It would receive the gradients of all gates of P times as many units instead: G times
// the size of an element. The product needs no sum over warps: each has all of k and rows of its own.
//
// Two buffers suffice, and as both are shared memory, an mbarrier counts far less than its 2^20 - 1 bytes. A block
// sends shares p + 2 after it has received p + 1 from all, and a block sends p + 1 after the barrier that follows its
// sum of p. A block exits after it has received the last shares from all: no store to it is in flight then.
#pragma once

#include "arrivals.cuh"
#include "plan.h"

namespace prnn::cuda {

// Of a warp with kTiles row tiles, a group of units each, and kColumnTiles tiles of eight columns.
template <int kTiles, int kColumnTiles>
class ClusterSums {
 public:
  PRNN_DEVICE_MEMBER ClusterSums(const Plan& plan, const WaitLimit& limit, char* shared, const SharedMemory& at,
                                 int rank)
      : arrivals(limit, shared),
        buffers(shared + at.sums),
        buffer_size(at.sums_size),
        share_size(buffer_size / plan.blocks) {
    pairs = plan.pairs() - lane() % 4;  // of columns, from this lane's first on
    const int place = rank * share_size + pair_at(lane() % 4) + lane() / 4 * 16;
    int to = 0, first = 0, next = plan.first_group(1);  // a block, its groups
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      const int group = warp() * kTiles + m;
#pragma unroll 1
      while (next <= group && next < plan.groups) ++to, first = next, next = plan.first_group(to + 1);
      const int there = place + (group - first) * plan.pairs() * kSumPair;
      places[m] = group < plan.groups ? there | to : -1;
    }
    const int own = plan.first_group(rank + 1) - plan.first_group(rank);
    arrivals.prepare(plan.blocks * own * plan.pairs() * kSumPair);
  }

  // By all lanes of a warp: its shares of a publication, to the blocks of their units.
  PRNN_DEVICE_MEMBER void send(unsigned publication, const float (&sums)[kTiles][kColumnTiles][4]) const {
    char* to = buffers + buffer(publication);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      if (places[m] < 0) continue;
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
        const float* x = sums[m][n];
        const Words4 words{bits_of<uint32_t>(x[0]), bits_of<uint32_t>(x[2]), bits_of<uint32_t>(x[1]),
                           bits_of<uint32_t>(x[3])};
        if (4 * n < pairs)
          remote_store(to + (places[m] & ~15) + pair_at(4 * n), words, arrivals.barrier(publication), places[m] & 15);
      }
    }
  }

  // By all threads: waits for all blocks' shares of a publication.
  PRNN_DEVICE_MEMBER void wait(unsigned publication) const { arrivals.wait(publication); }

  // Where the first block's share of a unit and a column is, of publication 0. `group`: of this block's.
  PRNN_DEVICE_MEMBER const char* place(const Plan& plan, int group, int column, int unit) const {
    return buffers + group * plan.pairs() * kSumPair + pair_at(column / 2) + unit / 2 * 16 + column % 2 * 8 +
           unit % 2 * 4;
  }
  // The sum of all blocks' shares: of pairs, of pairs of pairs, and so on.
  PRNN_DEVICE_MEMBER float total(const Plan& plan, unsigned publication, const char* place) const {
    const char* from = place + buffer(publication);
    return plan.blocks == 2   ? total_of<2>(from)
           : plan.blocks == 4 ? total_of<4>(from)
           : plan.blocks == 8 ? total_of<8>(from)
                              : total_of<16>(from);
  }

 private:
  PRNN_DEVICE_MEMBER int buffer(unsigned publication) const { return static_cast<int>(publication % 2) * buffer_size; }
  static PRNN_DEVICE_MEMBER int pair_at(int pair) { return pair * kSumPair; }

  template <int kBlocks>
  PRNN_DEVICE_MEMBER float total_of(const char* from) const {
    float part[kBlocks];
#pragma unroll
    for (int s = 0; s < kBlocks; ++s) part[s] = shared_load<float>(from + s * share_size);
#pragma unroll
    for (int step = 1; step < kBlocks; step *= 2)
#pragma unroll
      for (int s = 0; s < kBlocks; s += 2 * step) part[s] += part[s + step];
    return part[0];
  }

  Arrivals arrivals;
  char* buffers;          // [2][blocks][groups][pairs of columns], a pair as [unit / 2][column % 2][unit % 2]
  const int buffer_size;  // of a buffer
  const int share_size;   // of a block in it
  int pairs;
  // Of a tile's units: this lane's place in their block, a multiple of 16, and the block's rank; negative: none.
  int places[kTiles];
};

}  // namespace prnn::cuda
