// Differentiable stacks and lists on the GPU (../stack_memory.h): the common part of the two passes.
//
// A block runs all steps of a sample, then the next sample. The weights stay in its shared memory, and so do the cells
// of two consecutive steps, the cells of a memory contiguous. The sum of a unit is split over kParts lanes; a memory
// belongs to one warp, whose lanes iterate over the cells. Global memory is prefetched a step ahead. The order of every
// sum is fixed: results are bitwise reproducible.
#pragma once

#include "memory_plan.h"
#include "primitives.cuh"

namespace prnn::cuda {

template <class E>
PRNN_DEVICE E sigmoid(E x) {
  return 1 / (1 + exponential(-x));
}

template <class E>
class MemoryBlock {
 protected:
  static constexpr int kRows = 32 / kParts;  // of a matrix, that a warp multiplies at a time

  const MemoryPlan& plan;
  const int H, S, N, K, A, head;
  E* const shared;
  // As in MemoryShared.
  const int wide, narrow, row, first, second, vector, kept_size;

  PRNN_DEVICE_MEMBER MemoryBlock(const MemoryPlan& plan, const Memory& m, const MemoryShared& at)
      : plan(plan),
        H(int(m.H)),
        S(int(m.S)),
        N(int(m.N)),
        K(int(m.K)),
        A(int(m.A)),
        head(int(m.head)),
        shared(reinterpret_cast<E*>(shared_memory())),
        wide(int(at.wide)),
        narrow(int(at.narrow)),
        row(int(at.row)),
        first(int(at.first)),
        second(int(at.second)),
        vector(int(at.vector)),
        kept_size(int(at.kept_size)),
        state_(int(at.state)),
        ring_(int(at.ring)),
        kept_(int(at.kept)),
        own_cell_(thread() / S),
        own_memory_(thread() % S),
        cell_step_(threads() / S),
        memory_step_(threads() % S) {}

  PRNN_DEVICE_MEMBER int threads() const { return 32 * plan.warps; }
  PRNN_DEVICE_MEMBER E get(int i) const { return shared_load<E>(shared + i); }
  PRNN_DEVICE_MEMBER void put(int i, E x) const { shared_store(shared + i, x); }
  PRNN_DEVICE_MEMBER void fetch(int i, const E* from) const { copy_async(shared + i, from); }

  // Of step t, or after t steps.
  PRNN_DEVICE_MEMBER int state(int64_t t) const { return state_ + int(t % 2) * H; }
  PRNN_DEVICE_MEMBER int ring(int64_t t, int s) const { return ring_ + (int(t % 2) * S + s) * row; }
  PRNN_DEVICE_MEMBER int kept(int64_t t) const { return kept_ + int(t % 2) * kept_size; }

  // Cell i of the memory at `base`, which stores cells [low, high); every other one is `blank`.
  PRNN_DEVICE_MEMBER E cell(int base, int low, int high, int i, E blank) const {
    return i >= low && i < high ? get(base + i) : blank;
  }
  // Row of weight_act and place among a sample's logits of action q of memory s; 3: the value.
  PRNN_DEVICE_MEMBER int act_row(int q, int s) const { return q == 3 ? S * A + s : s * A + q; }

  // Copies the matrix [rows,columns] to `to`, with the given strides of rows and columns.
  PRNN_DEVICE_MEMBER void load(const void* from, int rows, int columns, int to, int row_step, int column_step) const {
    for (int i = thread(); i < rows * columns; i += threads())
      put(to + i / columns * row_step + i % columns * column_step, static_cast<const E*>(from)[i]);
  }

  // By all threads: use(i, s) for cells [low, high) of all memories, in the order of global memory.
  template <class Use>
  PRNN_DEVICE_MEMBER void each_cell(int low, int high, const Use& use) const {
    for (int i = low + own_cell_, s = own_memory_; i < high;) {
      use(i, s);
      i += cell_step_, s += memory_step_;
      if (s >= S) s -= S, ++i;
    }
  }

  // This lane's part of the dot product of a row at `matrix` and the vector at `x`.
  PRNN_DEVICE_MEMBER E product(int matrix, int x, int count) const {
    E sum = 0;
    for (int j = lane() % kParts; j < count; j += kParts) sum += get(matrix + j) * get(x + j);
    return sum;
  }
  // By all threads: use(row, sum) for each row, with the sum of `share`(row) over kParts lanes, by one of them.
  template <class Share, class Use>
  PRNN_DEVICE_MEMBER void each_row(int rows, const Share& share, const Use& use) const {
    for (int begin = warp() * kRows; begin < rows; begin += plan.warps * kRows) {
      const int own = begin + lane() / kParts;
      E sum = own < rows ? share(own) : E(0);
#pragma unroll
      for (int mask = kParts / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
      if (own < rows && lane() % kParts == 0) use(own, sum);
    }
  }
  // The sums of all lanes, in all lanes.
  template <int kCount>
  PRNN_DEVICE_MEMBER void total(E (&sums)[kCount]) const {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2)
#pragma unroll
      for (int q = 0; q < kCount; ++q) sums[q] += shuffle_xor(sums[q], mask);
  }

 private:
  const int state_, ring_, kept_;
  const int own_cell_, own_memory_, cell_step_, memory_step_;  // a thread's first, and from one to the next
};

}  // namespace prnn::cuda
