// A recurrent layer on the CPU: float and bfloat16.
#pragma once

#include <functional>

#include "../layer_args.h"

namespace prnn::cpu {

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
