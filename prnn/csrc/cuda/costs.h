// The constants of the cost model (step_microseconds, plan.cpp): cycles of a multiprocessor, bytes a cycle. Fitted by
// benchmarks/calibrate to 143 kernels timed on an H200 (benchmarks/results/h200), except tf32_cycles, exact_cycles and
// grid_bytes_of_all, on which no measurement depends and which are from a data sheet. They are properties of these
// kernels, not of the GPU: docs/kernels.md has both. calibrate.py writes a patch of this file: one positive constant a
// line.
#pragma once

namespace prnn::cuda {

struct Costs {
  double tensor_cycles = 11.2;         // an m16n8k16 in one of four tensor cores: 2048 FMA
  double tf32_cycles = 13.4;           // the same product of tf32 numbers
  double exact_cycles = 8;             // 16 x 16 weights times one column in exact float32: 256 FMA, 32 a cycle
  double shared_bytes = 66.2;          // of shared memory, a cycle
  double step_cycles = 2680;           // every step: a barrier of the block, latencies of the product and the sum
  double split_cycles = 36.9;          // besides, where warps share the sum: their barrier
  double rnn_forward_cycles = 331;     // an item of the pointwise part, of an RNN, forward
  double gru_forward_cycles = 398;     // of a GRU
  double lstm_forward_cycles = 1150;   // of an LSTM
  double rnn_backward_cycles = 388;    // of an RNN, backward
  double gru_backward_cycles = 2420;   // of a GRU
  double lstm_backward_cycles = 2040;  // of an LSTM
  double cluster_cycles = 57.5;        // a store into another block, its barrier seen
  double cluster_bytes = 5.21;         // a cycle, into one block from all others
  double grid_microseconds = 1.24;     // a store into L2, and the load that sees it
  double grid_bytes = 5.99;            // a cycle, out of L2 into one block
  double grid_bytes_of_all = 3100;     // a cycle, out of L2 into all blocks
};

}  // namespace prnn::cuda
