// The cells with CUDA kernels, one per row, and their constants, determined by compiling and measuring. No CUDA code is
// compiled for cells that are not listed.
#pragma once

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
//   units  nothing, as a unit meets its own h alone, or none: there is no product
enum class Scheme : int { local, grid, sums, units };
constexpr int kSchemes = 4;

// What a plan depends on of a cell.
struct CellModel {
  const char* name;
  int gates;
  int params;                 // values of each unit that a block keeps in shared memory, besides biases
  int widest;                 // the most values of a unit and step in one tensor
  double Costs::* cycles[2];  // forward and backward: the cost of an item of the pointwise part
  // Fragments a thread keeps in registers, along k, for each of its row tiles, by scheme, whether elements are float32,
  // whether it is the backward pass, and shape.
  int resident[kSchemes][2][2][kShapes];
  bool any_scheme = false;  // its kernels are compiled as they are wanted; those of the built-in cells are there
  int loads[2] = {};        // forward and backward: values of a unit that a step without a product loads, at most
};

// The models of the built-in cells. `resident` is one or two less than the most without spills, found by compiling
// (checked by tests/cuda_build): with the most, the compiler computes addresses again in each step for want of
// registers.
template <Cell>
struct CudaCell;

constexpr CellModel model_of_rnn(const char* name) {
  return {name,
          1,
          0,
          1,
          {&Costs::rnn_forward_cycles, &Costs::rnn_backward_cycles},
          {{{{36, 36, 18}, {34, 34, 17}}, {{18, 10, 9}, {17, 7, 8}}},
           {{{32, 30, 16}, {28, 24, 15}}, {{16, 13, 7}, {10, 9, 5}}}}};
}
template <>
struct CudaCell<Cell::rnn_relu> {
  static constexpr CellModel kModel = model_of_rnn("rnn_relu");
};
template <>
struct CudaCell<Cell::rnn_tanh> {
  static constexpr CellModel kModel = model_of_rnn("rnn_tanh");
};

template <>
struct CudaCell<Cell::gru> {
  static constexpr CellModel kModel = {"gru",
                                       3,
                                       0,
                                       4,
                                       {&Costs::gru_forward_cycles, &Costs::gru_backward_cycles},
                                       {{{{11, 10, 5}, {27, 27, 12}}, {{4, 2, 1}, {15, 2, 6}}},
                                        {{{10, 8, 5}, {24, 22, 12}}, {{4, 2, 1}, {9, 8, 5}}},
                                        {{{}, {7, 5, 2}}, {{}, {3, 0, 1}}}}};
};

template <>
struct CudaCell<Cell::lstm> {
  static constexpr CellModel kModel = {"lstm",
                                       4,
                                       0,
                                       5,
                                       {&Costs::lstm_forward_cycles, &Costs::lstm_backward_cycles},
                                       {{{{8, 7, 2}, {28, 28, 14}}, {{3, 0, 0}, {13, 4, 5}}},
                                        {{{8, 7, 3}, {24, 22, 13}}, {{3, 1, 0}, {9, 3, 4}}},
                                        {{{}, {8, 4, 2}}, {{}, {3, 0, 1}}}}};
};

#define PRNN_CHECK_ROW(Struct, name_)                                                                  \
  static_assert(CudaCell<Cell::name_>::kModel.gates == gates(Cell::name_), #name_ " has other gates"); \
  static_assert(CudaCell<Cell::name_>::kModel.widest >= saved(Cell::name_), #name_ " saves more");
PRNN_CUDA_CELLS(PRNN_CHECK_ROW)
#undef PRNN_CHECK_ROW

}  // namespace prnn::cuda
