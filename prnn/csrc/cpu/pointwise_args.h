// One step of some samples: the arguments of a cell's pointwise kernels. Compiled with each cell, also with those
// written in Python: what changes here, or in any file that a user's cell includes, makes their compiled kernels stale.
//
// Shapes: H hidden size, P = H rounded up to whole vectors, G gates, S saved. E is the type of x and output; h in
// scratch memory (Element) is float, or E where pairs of bfloat16 are multiplied. Rows are dense.
#pragma once

#include <cstdint>

namespace prnn::cpu {

// The largest input that is multiplied by its weights without a product: where the gates are, in the forward pass, and
// with their sums in the backward pass.
constexpr int kNarrow = 2;

// What all samples have in common.
struct StepLayout {
  int64_t H, P;
  int64_t first, last;  // the vectors of hidden units to compute
  int64_t state_step;   // between the states of a sample in scratch memory
  int64_t c_step;       // between its states in c0 and c_n
  const float* params;  // [params,P]
  // The projection of a narrow input, which takes less time here than as a product.
  int64_t narrow;         // its size; 0 of others
  const float* weight_x;  // [narrow,G*P]
  const float* bias_x;    // [G*P]
};

struct ForwardSample {
  const float *gates_x, *gates_h;  // [G*P]; no gates_x of a narrow input
  const void* x;                   // E [narrow], which is then this
  const void* h_prev;              // Element [P]
  void* h;                         // Element [P]
  float* states;                   // [P] of each state: before the step, then after it
  const float* inputs;             // [inputs*H]
  void* output;                    // E [H]
  void* hidden;                    // E [H]: h, of a cell whose output is another; or null
  void* saved;                     // [S*H] or null
  void* h_n;                       // E [H] after the sample's last step; else null
  float* c_n;                      // [H] of each state, likewise
  bool reset;                      // all states are zero before the step, whatever h_prev and `states` hold
};

struct BackwardSample {
  float* grad_h;                      // [P] of h after the step, without grad_output; then what bypasses the matmul
  float* grad_states;                 // [P] of each state: after the step, then before it
  const void* grad_output;            // E [H] or null
  const void *h, *h_prev;             // E [H]
  const void* saved;                  // [S*H]
  const void* saved_before;           // of the step before; null at the sample's first step and after a reset
  const float* c0;                    // [H] of each state, at the sample's first step without a reset; else null
  float* grad_params;                 // [params,P], of this sample, to be added to, or null
  const float* inputs;                // [inputs*H]
  float* grad_inputs;                 // [inputs*H] or null
  void *grad_gates_x, *grad_gates_h;  // Element [G*H], the last gate's last vector whole; one where they are the same
};

struct Pointwise {
  void (*forward)(const StepLayout& layout, const ForwardSample* samples, int64_t n);
  void (*backward)(const StepLayout& layout, const BackwardSample* samples, int64_t n);
};

}  // namespace prnn::cpu
