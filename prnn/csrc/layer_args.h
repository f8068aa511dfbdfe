// The arguments of one recurrent layer: the interface between the bindings and the kernels of every backend.
//
// Shapes: T time steps, B batch, I input size, H hidden size, G gates, S saved (cell_table.h). A cell has states
// besides h, parameters and inputs, as many as its row in the table says; they are float, one value for each unit.
// Elements are float, or 16-bit floats (`Dtype`); products and the cell state accumulate in float; activations saved
// for the backward pass are rounded to the element type, as in oneDNN: a forget gate above 0.998 is 1 in bfloat16.
// Row-major; strides, where given, are in elements and the last dimension is dense. No pointer aliases another.
#pragma once

#include <cstdint>

#include "cell_table.h"

namespace prnn {

struct UserCell;  // cpu/user_cell.h

enum class Dtype : int64_t { float32, bfloat16, float16 };

// A sequence [T,B,*]: element (t, b, 0) is at offset t * step + b * row.
template <class Void>
struct Sequence {
  Void* data;  // null if absent
  int64_t step, row;
};

// The inputs of both passes. A reversed layer runs each sample from its last valid step to its first.
struct Layer {
  Cell cell;
  Dtype dtype;
  bool reverse;
  int64_t T, B, I, H;
  Sequence<const void> x;  // [T,B,I]; if weight_ih is null: the input projection, [T,B,G*H]
  const void* weight_ih;   // [G*H,I] or null
  const void* weight_hh;   // [G*H,H], or [G*H,K]
  const void* h0;          // [B,H]
  const float* c0;         // [B,H] of each state, state_step apart; null for cells without
  const int64_t* lengths;  // [B], clamped to 0..T here, or null: all T
  const bool* resets;      // [T,B] or null: true zeroes the states before the step
  // Of cells written in Python:
  const UserCell* user = nullptr;    // on a CPU the cell is this one; null: it is `cell`
  int64_t K = -1;                    // columns of weight_hh, if not H: of diagonal blocks, or 0: no recurrent weight
  int64_t state_step = 0;            // between the states in c0, c_n and their gradients
  const float* params = nullptr;     // [params,H]
  Sequence<const void> inputs = {};  // [T,B,inputs*H], float
};

// The units on whose states the gates of one unit depend.
inline int64_t recurrent_units(const Layer& layer) { return layer.K < 0 ? layer.H : layer.K; }

// Every element of the results is written.
struct Forward : Layer {
  const void* bias_ih;    // [G*H] or null; ignored without weight_ih
  const void* bias_hh;    // [G*H] or null
  Sequence<void> output;  // [T,B,H], zero at steps past a sample's length
  void* h_n;              // [B,H]
  float* c_n;             // as c0, or null
  void* saved;            // [T,B,S*H], elements as x, or float (rounds_saved): for the backward pass; or null
  Sequence<void> hidden;  // h [T,B,H] of a cell whose output is another
};

// Results that are null are not computed. If weight_ih is null, grad_x is the gradient of gates_x.
struct Backward : Layer {
  Sequence<const void> output;       // of the forward pass
  const void* saved;                 // of the forward pass
  Sequence<const void> grad_output;  // [T,B,H] or absent: zero
  const void* grad_h_n;              // [B,H] or null: zero
  const float* grad_c_n;             // as c0, or null: zero
  Sequence<void> grad_x;             // as x
  void* grad_weight_ih;              // [G*H,I]
  void* grad_weight_hh;              // as weight_hh
  void* grad_bias_ih;                // [G*H]
  void* grad_bias_hh;                // [G*H]
  void* grad_h0;                     // [B,H]
  float* grad_c0;                    // as c0
  Sequence<const void> hidden;       // of the forward pass
  float* grad_params;                // [params,H]
  Sequence<void> grad_inputs;        // as inputs, zero at steps past a sample's length
};

// Steps in the order of the recurrence: s = 0 is the first, at time T - 1 of a reversed layer.
struct Steps {
  int64_t T, B;
  bool reverse;
  const int64_t* lengths;
  const bool* resets;

  PRNN_BOTH explicit Steps(const Layer& layer)
      : T(layer.T), B(layer.B), reverse(layer.reverse), lengths(layer.lengths), resets(layer.resets) {}

  PRNN_BOTH int64_t length(int64_t b) const {
    if (!lengths) return T;
    return lengths[b] < 0 ? 0 : lengths[b] > T ? T : lengths[b];
  }
  PRNN_BOTH int64_t time(int64_t s, int64_t b) const { return reverse ? length(b) - 1 - s : s; }
  // Whether the state is zeroed before step s; in reverse, a boundary before time t lies after t.
  PRNN_BOTH bool reset(int64_t s, int64_t b) const {
    if (!resets) return false;
    return reverse ? s > 0 && resets[(time(s, b) + 1) * B + b] : resets[s * B + b];
  }
};

template <class X>
PRNN_BOTH inline const X* row_of(const Sequence<const void>& sequence, int64_t t, int64_t b) {
  return static_cast<const X*>(sequence.data) + t * sequence.step + b * sequence.row;
}
template <class X>
PRNN_BOTH inline X* row_of(const Sequence<void>& sequence, int64_t t, int64_t b) {
  return static_cast<X*>(sequence.data) + t * sequence.step + b * sequence.row;
}

}  // namespace prnn
