// The recurrence of a network with differentiable stacks or lists (Joulin and Mikolov, 2015, arXiv:1503.01007,
// section 3.2 on).
//
// Shapes: T time steps, B batch, H hidden size, S memories (stacks or lists) of N cells each, K cells of each are read,
// A actions. One step of one sample:
//
//     h = sigmoid(gates_x + weight_hh h' + weight_read m'[head .. head + K))    m': the memories before the step
//     a = softmax(the first S*A of weight_act h, A for each memory);  v = sigmoid(the other S of weight_act h)
//     m[i] = a0 m'[i-1] + a1 m'[i+1] + a2 m'[i]       and at the head
//     stack (head 0):   m[0] = a0 v + a1 m'[1] + a2 m'[0]                PUSH, POP, and with A 3 NO-OP
//     list:          m[head] = a0 m'[head-1] + a1 m'[head+1] + a2 v      LEFT, RIGHT, INSERT
//     where a list's a2 multiplies m'[i+1] left of the head: an insertion shifts the head cell and all cells left of
//     it by one.
//
// Cells out of bounds read as `empty`. Row-major; no pointer aliases another. The elements are floats or doubles.
#pragma once

#include "layer_args.h"

namespace prnn {

struct Memory {
  bool list, doubles;
  bool rounds;  // hard (argmax) actions; without a backward pass
  int64_t T, B, H, S, N, K, A;
  int64_t head;
  int64_t first, last;  // cells of memory0 outside [first, last), which contains the head, are `empty` in all samples
  double empty;
  const void* gates_x;      // [T,B,H]
  const void* weight_hh;    // [H,H] or null: h depends only on the input and the cells read
  const void* weight_read;  // [H,S*K], K for each memory
  const void* weight_act;   // [S*A+S,H]
  const void* h0;           // [B,H]; ignored without weight_hh
  const void* memory0;      // [N,B,S]

  // The range of cells that may differ from `empty` after t steps: it grows by one cell a step.
  PRNN_BOTH int64_t low(int64_t t) const { return t < first ? first - t : 0; }
  PRNN_BOTH int64_t high(int64_t t) const { return t < N - last ? last + t : N; }
  // Elements of `saved` before those of step t.
  PRNN_BOTH int64_t saved_before(int64_t t) const {
    const int64_t growing = t < N - last ? t : N - last, falling = t < first ? t : first;  // until an end is reached
    const int64_t above = growing * last + growing * (growing - 1) / 2 + (t - growing) * N;
    return (above - (falling * first - falling * (falling - 1) / 2)) * B * S;
  }
};

struct MemoryForward : Memory {
  void* output;    // [T,B,H]
  void* memory_n;  // [N,B,S]
  // Inputs of the backward pass; null without one.
  void* actions;  // [T,A+1,B,S], the value v last
  void* reads;    // [T,B,S*K]
  void* saved;    // for each step t the memories before it: cells [low(t), high(t)), each [B,S]
};

struct MemoryBackward : Memory {
  const void *output, *actions, *saved;  // of the forward pass
  const void* grad_output;               // [T,B,H] or null: zero
  const void* grad_memory_n;             // [N,B,S] or null: zero
  void* grad_gates_x;                    // [T,B,H]
  void* grad_act;                        // [T,B,S*A+S]: of weight_act h
  void* grad_memory0;                    // [N,B,S] or null; then [first, last) must be [0, N)
};

}  // namespace prnn
