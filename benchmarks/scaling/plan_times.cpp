// Evaluates the CUDA kernels' cost model (prnn/csrc/cuda/planner.cpp) for a step on an H200. Built and run by
// benchmarks/scaling/small_batch.py. Arguments: cell (its name), hidden size, batches...;
// a line for each batch: batch, microseconds forward, backward.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "planner.h"

int main(int count, char** words) {
  using namespace prnn;
  using namespace prnn::cuda;
  if (count < 4) return 2;
  const std::string name = words[1];
  int64_t number = 0;
  while (number < kCellCount && name != kCells[number].name) ++number;
  if (number == kCellCount) return 2;
  const Cell cell = static_cast<Cell>(number);
  // As in docs/kernels.md: 132 multiprocessors; 7 clusters of 16 is what to count on.
  const Device h200{132, 227 << 10, {66, 30, 15, 7}, 1.98};
  for (int i = 3; i < count; ++i) {
    double microseconds[2];
    for (const bool backward : {false, true}) {
      const int64_t B = std::atoll(words[i]), H = std::atoll(words[2]);
      const auto plan = make_plan({model_of(cell), Dtype::bfloat16, B, H, backward, false}, 1, h200);
      if (!plan) return 1;
      microseconds[backward] = plan->microseconds;
    }
    std::printf("%s %.6f %.6f\n", words[i], microseconds[0], microseconds[1]);
  }
}
