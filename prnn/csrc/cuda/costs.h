// The constants of the cost model (step_microseconds, planner.cpp): cycles of a multiprocessor, bytes a cycle. Fitted
// by benchmarks/calibrate to the steps of 375 plans, simulated from the kernels' machine code (benchmarks/sass;
// benchmarks/results/sass/check.json has most of them): no GPU has timed these kernels yet. tf32_cycles, exact_cycles
// and grid_bytes_of_all, on which none of them depends, are from a data sheet. They are properties of these kernels,
// not of the GPU: docs/kernels.md has both. calibrate.py writes a patch of this file: one positive constant a line.
#pragma once

namespace prnn::cuda {

struct Costs {
  double tensor_cycles = 17.6;         // an m16n8k16 in one of four tensor cores: 2048 FMA
  double tf32_cycles = 13.4;           // the same product of tf32 numbers
  double exact_cycles = 8;             // 16 x 16 weights times one column in exact float32: 256 FMA, 32 a cycle
  double shared_bytes = 97.2;          // of shared memory, a cycle
  double step_cycles = 171;            // every step: a barrier of the block, latencies of the product and the sum
  double split_cycles = 15.1;          // besides, where warps share the sum: their barrier
  double rnn_forward_cycles = 778;     // an item of the pointwise part, of an RNN, forward
  double gru_forward_cycles = 86.1;    // of a GRU
  double lstm_forward_cycles = 51;     // of an LSTM
  double rnn_backward_cycles = 847;    // of an RNN, backward
  double gru_backward_cycles = 1210;   // of a GRU
  double lstm_backward_cycles = 1050;  // of an LSTM
  double cluster_cycles = 291;         // a store into another block, its barrier seen
  double cluster_bytes = 23.2;         // a cycle, into one block from all others
  double grid_microseconds = 0.324;    // a store into L2, and the load that sees it
  double grid_bytes = 41.7;            // a cycle, out of L2 into one block
  double grid_bytes_of_all = 3100;     // a cycle, out of L2 into all blocks
};

}  // namespace prnn::cuda
