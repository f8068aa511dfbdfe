// What the cost model (step_microseconds, plan.cpp) takes the parts of a step to cost: cycles of a multiprocessor,
// bytes a cycle. The values are an H100's or H200's, from data sheets and published measurements: docs/kernels.md has
// the sources, benchmarks/micro.cu measures most of them alone, and benchmarks/calibrate.py fits them to whole kernels
// and writes a patch of this file: one positive constant a line.
#pragma once

namespace prnn::cuda {

struct Costs {
  double tensor_cycles = 6.7;         // an m16n8k16 in one of four tensor cores: 2048 FMA at 60 % of dense bf16
  double tf32_cycles = 13.4;          // the same product of tf32 numbers
  double exact_cycles = 8;            // 16 x 16 weights times one column in exact float32: 256 FMA, 32 a cycle
  double shared_bytes = 128;          // of shared memory, a cycle
  double step_cycles = 120;           // every step: a barrier of the block, latencies of the product and the sum
  double split_cycles = 40;           // besides, where warps share the sum: their barrier
  double rnn_forward_cycles = 90;     // an item of the pointwise part, of an RNN, forward
  double gru_forward_cycles = 230;    // of a GRU
  double lstm_forward_cycles = 260;   // of an LSTM
  double rnn_backward_cycles = 110;   // of an RNN, backward
  double gru_backward_cycles = 190;   // of a GRU
  double lstm_backward_cycles = 220;  // of an LSTM
  double next_item = 0.4;             // a warp's second item, as a part of the first
  double cluster_cycles = 350;        // a store into another block, its barrier seen
  double cluster_bytes = 14;          // a cycle, into one block from all others
  double grid_microseconds = 0.65;    // a store into L2, and the load that sees it
  double grid_bytes = 40;             // a cycle, out of L2 into one block
  double grid_bytes_of_all = 3100;    // a cycle, out of L2 into all blocks
};

}  // namespace prnn::cuda
