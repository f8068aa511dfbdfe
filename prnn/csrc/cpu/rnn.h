// The vanilla RNN on the CPU: what the binding and the kernels of every instruction set agree on.
//
// Shapes: T time steps, B batch, H hidden size; float32, row-major, contiguous.
#pragma once

#include <cstdint>

namespace prnn::cpu {

// One forward pass. No pointer aliases another.
struct RnnForward {
  int64_t T, B, H;
  bool relu;               // relu instead of tanh
  const float* gates_x;    // [T,B,H]
  const float* packed;     // weight_hh as packed by RnnKernels::pack with transpose = false
  const float* bias;       // [H] or null
  const float* h0;         // [B,H]
  const int64_t* lengths;  // [B] or null: no padding
  const bool* resets;      // [T,B] or null
  const float* zeros;      // [H] zeros: the state after a reset
  float* output;           // [T,B,H], every element is written
  float* h_n;              // [B,H], every element is written
};

// One backward pass: the gradient of the gates at each step, and of the initial state.
struct RnnBackward {
  int64_t T, B, H;
  bool relu;
  const float* grad_output;  // [T,B,H] or null: zero
  const float* grad_h_n;     // [B,H] or null: zero
  const float* packed;       // weight_hh as packed with transpose = true
  const int64_t* lengths;    // [B] or null
  const bool* resets;        // [T,B] or null
  const float* output;       // [T,B,H] of the forward pass
  float* grad_gates;         // [T,B,H], every element is written
  float* grad_h0;            // [B,H], every element is written; carries dh during the pass
};

// The kernels of one instruction set. `forward` and `backward` work on samples [begin, end) and share nothing
// between samples, so any split of the batch over threads gives the same bits.
struct RnnKernels {
  const char* isa;
  int64_t lanes;  // floats in a vector; weights are packed in panels of as many units
  void (*forward)(const RnnForward& pass, int64_t begin, int64_t end);
  void (*backward)(const RnnBackward& pass, int64_t begin, int64_t end);

  int64_t panels(int64_t H) const { return (H + lanes - 1) / lanes; }
  int64_t packed_size(int64_t H) const { return panels(H) * H * lanes; }
  // packed[panel][k][lane] = weight[panel * lanes + lane][k] (or its transpose), zero beyond H.
  void pack(const float* weight, int64_t H, bool transpose, float* packed) const;
};

const RnnKernels& portable_kernels();
#if defined(__x86_64__)
const RnnKernels& avx2_kernels();
const RnnKernels& avx512_kernels();
#endif

// The widest kernels this processor runs, and no wider than PRNN_CPU_ISA=portable|avx2|avx512 if that is set.
const RnnKernels& best_kernels();

}  // namespace prnn::cpu
