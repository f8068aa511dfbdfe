// One recurrent layer on the CPU: what the binding, the driver and the kernels of every instruction set agree on.
//
// Shapes: T time steps, B batch, I input size, H hidden size, G gates (RNN 1, GRU 3, LSTM 4), S saved (0, 4, 5).
// Elements are float or bfloat16 (`Dtype`), products and the cell state accumulate in float; what is saved for the
// backward pass is rounded to the element, as oneDNN does: a forget gate above 0.998 is 1 in bfloat16. Row-major; where
// a stride is given, it is in elements and the last dimension is dense. No pointer aliases another.
#pragma once

#include <cstdint>
#include <functional>

namespace prnn::cpu {

enum class Cell : int64_t { rnn_relu = 0, rnn_tanh = 1, lstm = 2, gru = 3 };  // ATen's and cuDNN's numbers
enum class Dtype : int64_t { float32, bfloat16 };

// A sequence [T,B,*]: element (t, b, 0) stands at t * step + b * row.
template <class Void>
struct Sequence {
  Void* data;  // null where it is absent
  int64_t step, row;
};

// What both passes read. A reversed layer runs each sample from its own last step to its first.
struct Layer {
  Cell cell;
  Dtype dtype;
  bool reverse;
  int64_t T, B, I, H;
  Sequence<const void> x;  // [T,B,I]; where weight_ih is null: the gates' share of the input, [T,B,G*H]
  const void* weight_ih;   // [G*H,I] or null
  const void* weight_hh;   // [G*H,H]
  const void* h0;          // [B,H]
  const float* c0;         // [B,H]; null for cells without c
  const int64_t* lengths;  // [B], clamped to 0..T here, or null: all T
  const bool* resets;      // [T,B] or null: true zeroes the state before the step
};

// Every element of the results is written.
struct Forward : Layer {
  const void* bias_ih;    // [G*H] or null; ignored without weight_ih
  const void* bias_hh;    // [G*H] or null
  Sequence<void> output;  // [T,B,H], zero at steps past a sample's length
  void* h_n;              // [B,H]
  float* c_n;             // [B,H] or null
  void* saved;            // [T,B,S*H], elements as x: for the backward pass; or null
};

// Results that are null are not computed. A gradient of gates_x stands in grad_x where weight_ih is null.
struct Backward : Layer {
  Sequence<const void> output;       // of the forward pass
  const void* saved;                 // of the forward pass
  Sequence<const void> grad_output;  // [T,B,H] or absent: zero
  const void* grad_h_n;              // [B,H] or null: zero
  const float* grad_c_n;             // [B,H] or null: zero
  Sequence<void> grad_x;             // as x
  void* grad_weight_ih;              // [G*H,I]
  void* grad_weight_hh;              // [G*H,H]
  void* grad_bias_ih;                // [G*H]
  void* grad_bias_hh;                // [G*H]
  void* grad_h0;                     // [B,H]
  float* grad_c0;                    // [B,H]
};

// Calls body(begin, end) on disjoint ranges that make up [0, n), on as many threads as there are or on fewer.
using Body = std::function<void(int64_t begin, int64_t end)>;
using Parallel = std::function<void(int64_t n, const Body& body)>;

// Run one layer, or the two directions of a bidirectional one (count 2: of one shape, side by side where that is
// quicker), on at most `threads` threads. The results have the same bits whatever number of threads there is.
void forward(const Forward* passes, int count, int64_t threads, const Parallel& parallel);
void backward(const Backward* passes, int count, int64_t threads, const Parallel& parallel);

// sum[i] += share[i] for i < n: two directions' gradients of what they both read.
void add(Dtype dtype, void* sum, const void* share, int64_t n, const Parallel& parallel);

// Asks for huge pages under a large result that is about to be written: without them a third of an LSTM's forward pass
// over T 784, B 32, H 100 goes to the page faults of `saved`. Changes no result, and nothing where there are none.
void expect_to_fill(void* memory, int64_t bytes);

// The instruction set the kernels were built for that runs here: the widest this processor has, and no wider than
// PRNN_CPU_ISA=portable|avx2|avx512|avx512_bf16 if that is set.
const char* instruction_set();

}  // namespace prnn::cpu
