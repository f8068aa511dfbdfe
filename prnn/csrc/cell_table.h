// The cells, one per row: a new cell for the CPU is a struct in cells.h and a row here. cuda/cuda_cells.h lists those
// with CUDA kernels.
//
// A cell's id is its row number (not ATen's); torch.ops.prnn_native.cells() returns the names in this order.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define PRNN_BOTH __host__ __device__
#else
#define PRNN_BOTH
#endif

// X(struct in cells.h, name)
#define PRNN_CELLS(X)  \
  X(RnnRelu, rnn_relu) \
  X(RnnTanh, rnn_tanh) \
  X(Gru, gru)          \
  X(Lstm, lstm)

namespace prnn {

// Only for the structs' constants: their functions are templates, which each backend instantiates in its namespace.
namespace cell_constants {
#include "cells.h"
#undef PRNN_CELL_FUNCTION
}  // namespace cell_constants

#define PRNN_ENUMERATOR(Struct, name) name,
enum class Cell : int64_t { PRNN_CELLS(PRNN_ENUMERATOR) };
#undef PRNN_ENUMERATOR

// The constants of a cell's struct: G gates, S values saved for the backward pass, states besides h, parameters and
// inputs, for each unit.
struct CellRow {
  const char* name;
  int64_t gates, saved, states, params, inputs;
  int64_t output;  // -1: h, else the number of a state
  bool splits_gates, rounds_saved;
};

template <class C>
constexpr CellRow row_of_cell(const char* name) {
  return {name, C::kGates, C::kSaved, C::kStates, C::kParams, C::kInputs, C::kOutput, C::kSplitsGates, C::kRoundsSaved};
}

#define PRNN_ROW(Struct, name) row_of_cell<cell_constants::Struct>(#name),
inline constexpr CellRow kCells[] = {PRNN_CELLS(PRNN_ROW)};
#undef PRNN_ROW
inline constexpr int64_t kCellCount = sizeof(kCells) / sizeof(kCells[0]);

constexpr bool is_cell(int64_t number) { return number >= 0 && number < kCellCount; }
constexpr const char* name_of(Cell cell) { return kCells[static_cast<int64_t>(cell)].name; }
// Not from kCells: a kernel has no access to that.
#define PRNN_GATES(Struct, name) cell == Cell::name ? cell_constants::Struct::kGates:
PRNN_BOTH constexpr int64_t gates(Cell cell) { return PRNN_CELLS(PRNN_GATES) 0; }
#undef PRNN_GATES
constexpr int64_t saved(Cell cell) { return kCells[static_cast<int64_t>(cell)].saved; }
constexpr bool has_c(Cell cell) { return kCells[static_cast<int64_t>(cell)].states > 0; }
constexpr bool splits_gates(Cell cell) { return kCells[static_cast<int64_t>(cell)].splits_gates; }

#define PRNN_CHECK_ROW(Struct, name)                                                      \
  static_assert(gates(Cell::name) >= 1 && saved(Cell::name) >= 0, #name " has no gates"); \
  static_assert(kCells[int(Cell::name)].states <= 1 && kCells[int(Cell::name)].params == 0, #name " is too large");
PRNN_CELLS(PRNN_CHECK_ROW)
#undef PRNN_CHECK_ROW

}  // namespace prnn
