// A recurrent layer on the CPU: float and bfloat16.
#pragma once

#include <atomic>
#include <functional>

#include "../layer_args.h"
#include "user_cell.h"

namespace prnn::cpu {

inline const CellRow& cell_row(const Layer& layer) {
  return layer.user ? layer.user->row : kCells[static_cast<int64_t>(layer.cell)];
}

// Calls body(begin, end) on disjoint ranges that cover [0, n), on all available threads or fewer.
using Body = std::function<void(int64_t begin, int64_t end)>;
using Parallel = std::function<void(int64_t n, const Body& body)>;

// Run one layer, or the two directions of a bidirectional one (count 2: of one shape, concurrently where that is
// faster), on at most `threads` threads. The results are bitwise independent of the number of threads.
void forward(const Forward* passes, int count, int64_t threads, const Parallel& parallel);
void backward(const Backward* passes, int count, int64_t threads, const Parallel& parallel);

// Run the layers of a stack in the order given, where each reads what the one before it writes: x the output, or
// grad_output the gradient of x. They are of one shape, but for I, and may run at the same time, each a few steps
// behind the one before (a wavefront), where that is faster. The results do not depend on it.
void forward_stack(const Forward* layers, int count, int64_t threads, const Parallel& parallel);
void backward_stack(const Backward* layers, int count, int64_t threads, const Parallel& parallel);

// Whether calls whose time depends on the machine's state choose their number of threads by trial (trials.h), and
// stacks whether to run as a wavefront. Tests of threads want those they ask for, and a wavefront wherever there can be
// one.
inline std::atomic<bool> chooses_by_trial{true};

// sum[i] += share[i] for i < n: the two directions' gradients of their common input.
void add(Dtype dtype, void* sum, const void* share, int64_t n, const Parallel& parallel);

// The instruction set of the kernels in use: the widest of this processor, but no wider than
// PRNN_CPU_ISA=portable|avx2|avx512|avx512_bf16 if that is set. (float32 has no kernels wider than avx512.)
const char* instruction_set();

}  // namespace prnn::cpu
