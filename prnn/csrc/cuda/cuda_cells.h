// The cells with CUDA kernels, one per row, and their constants, determined by compiling and measuring. No CUDA code is
// compiled for cells that are not listed.
#pragma once

#include <stdexcept>
#include <string>

#include "../layer_args.h"
#include "costs.h"

// X(struct in cells.h, name): a row has its constants below, and a kernels_NAME.cu.
#define PRNN_CUDA_CELLS(X) \
  X(RnnRelu, rnn_relu)     \
  X(RnnTanh, rnn_tanh)     \
  X(Gru, gru)              \
  X(Lstm, lstm)

namespace prnn::cuda {

constexpr int kShapes = 3;  // that kernels are compiled for: shape_of, plan.h

// What the blocks of a team exchange, where there are several: a constant of a kernel.
//   local  within a block or cluster: the state, which is h or the gates' gradients
//   grid   through global memory: the state
//   sums   within a cluster: shares of the gradients of h, in float32, which are fewer bytes where there are many gates
enum class Scheme : int { local, grid, sums };

// A cell's constants:
//   resident  fragments a thread keeps in registers, along k, for each of its row tiles: one or two less than the most
//             without spills, found by compiling (checked by tests/cuda_build). With the most, the compiler computes
//             addresses again in each step for want of registers
//   kCycles   forward and backward: the cost of an item of the pointwise part
template <Cell>
struct CudaCell;

struct CudaRnn {
  static constexpr int kGates = 1;
  static constexpr double Costs::* kCycles[2] = {&Costs::rnn_forward_cycles, &Costs::rnn_backward_cycles};

  PRNN_BOTH static constexpr int resident(Scheme scheme, bool backward, bool float32, int shape) {
    constexpr int kMost[2][2][2][kShapes] = {{{{36, 36, 18}, {34, 34, 17}}, {{18, 10, 9}, {17, 7, 8}}},
                                             {{{32, 30, 16}, {28, 24, 15}}, {{16, 13, 7}, {10, 9, 5}}}};
    return kMost[static_cast<int>(scheme)][float32][backward][shape];
  }
};

template <>
struct CudaCell<Cell::rnn_relu> : CudaRnn {};
template <>
struct CudaCell<Cell::rnn_tanh> : CudaRnn {};

template <>
struct CudaCell<Cell::gru> {
  static constexpr int kGates = 3;
  static constexpr double Costs::* kCycles[2] = {&Costs::gru_forward_cycles, &Costs::gru_backward_cycles};

  PRNN_BOTH static constexpr int resident(Scheme scheme, bool backward, bool float32, int shape) {
    constexpr int kMost[3][2][2][kShapes] = {{{{11, 10, 5}, {27, 27, 12}}, {{4, 2, 1}, {15, 2, 6}}},
                                             {{{10, 8, 5}, {24, 22, 12}}, {{4, 2, 1}, {9, 8, 5}}},
                                             {{{}, {7, 5, 2}}, {{}, {3, 1, 1}}}};
    return kMost[static_cast<int>(scheme)][float32][backward][shape];
  }
};

template <>
struct CudaCell<Cell::lstm> {
  static constexpr int kGates = 4;
  static constexpr double Costs::* kCycles[2] = {&Costs::lstm_forward_cycles, &Costs::lstm_backward_cycles};

  PRNN_BOTH static constexpr int resident(Scheme scheme, bool backward, bool float32, int shape) {
    constexpr int kMost[3][2][2][kShapes] = {{{{8, 7, 2}, {28, 28, 14}}, {{3, 0, 0}, {13, 4, 5}}},
                                             {{{8, 7, 3}, {24, 22, 13}}, {{3, 1, 0}, {9, 3, 4}}},
                                             {{{}, {8, 4, 3}}, {{}, {3, 1, 1}}}};
    return kMost[static_cast<int>(scheme)][float32][backward][shape];
  }
};

// The number of row tiles for which the constants were determined.
#define PRNN_CHECK_ROW(Struct, name) \
  static_assert(CudaCell<Cell::name>::kGates == gates(Cell::name), #name " has other constants' number of gates");
PRNN_CUDA_CELLS(PRNN_CHECK_ROW)
#undef PRNN_CHECK_ROW

constexpr bool has_kernels(Cell cell) {
#define PRNN_IS(Struct, name) || cell == Cell::name
  return false PRNN_CUDA_CELLS(PRNN_IS);
#undef PRNN_IS
}

[[noreturn]] inline void no_kernels(Cell cell) {
  throw std::runtime_error(std::string("prnn: there are no CUDA kernels of ") + name_of(cell));
}

// Both throw std::runtime_error for a cell without kernels.
inline int resident_fragments(Cell cell, Scheme scheme, bool backward, bool float32, int shape) {
  switch (cell) {
#define PRNN_RESIDENT(Struct, name) \
  case Cell::name:                  \
    return CudaCell<Cell::name>::resident(scheme, backward, float32, shape);
    PRNN_CUDA_CELLS(PRNN_RESIDENT)
#undef PRNN_RESIDENT
    default:
      no_kernels(cell);
  }
}
inline double pointwise_cycles(Cell cell, bool backward, const Costs& costs) {
  switch (cell) {
#define PRNN_CYCLES(Struct, name) \
  case Cell::name:                \
    return costs.*CudaCell<Cell::name>::kCycles[backward];
    PRNN_CUDA_CELLS(PRNN_CYCLES)
#undef PRNN_CYCLES
    default:
      no_kernels(cell);
  }
}

}  // namespace prnn::cuda
