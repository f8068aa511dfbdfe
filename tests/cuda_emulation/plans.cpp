// Prints what the cost model plans for the rows of docs/kernels.md on an H200, as a table in markdown.
#include <cstdio>

#include "plan.h"

int main() {
  using namespace prnn;
  using namespace prnn::cuda;
  // 132 multiprocessors in 8 GPCs of 16 or 18, of which some are switched off: 7 clusters of 16 is what to count on.
  const Device h200{132, 227 << 10, {0, 66, 32, 16, 7}, 1.755};
  struct Row {
    const char* name;
    Cell cell;
    Dtype dtype;
    int64_t B, H;
    int directions;
  };
  const Row rows[] = {
      {"LSTM bf16 H768 B16 T1024", Cell::lstm, Dtype::bfloat16, 16, 768, 1},
      {"LSTM bf16 H1024 B16 T1024", Cell::lstm, Dtype::bfloat16, 16, 1024, 1},
      {"GRU bf16 H1024 B32 T1500", Cell::gru, Dtype::bfloat16, 32, 1024, 1},
      {"RNN relu fp32 H100 B32 T784", Cell::rnn_relu, Dtype::float32, 32, 100, 1},
      {"RNN relu bf16 H1152 B4 T1024", Cell::rnn_relu, Dtype::bfloat16, 4, 1152, 1},
      {"RNN relu bf16 H1760 B16 T50", Cell::rnn_relu, Dtype::bfloat16, 16, 1760, 1},
      {"bidirectional LSTM bf16 H512 B16 T512, a layer", Cell::lstm, Dtype::bfloat16, 16, 512, 2},
  };
  std::printf("| shape | pass | regime | teams x blocks | units a block | columns | warps (rows x k) | us/step |\n");
  std::printf("|---|---|---|---|---|---|---|---|\n");
  for (const Row& row : rows)
    for (const bool backward : {false, true})
      for (int only = -1; only < 3; ++only) {
        const auto plan = make_plan(row.cell, row.dtype, row.B, row.H, backward, false, row.directions, h200,
                                    only < 0 ? std::nullopt : std::optional<Regime>(Regime(only)));
        if (!plan) continue;
        std::printf("| %s | %s%s | %s | %d x %d | %d | %d | %d x %d | %.2f |\n", row.name,
                    backward ? "backward" : "forward", only < 0 ? "" : ", forced", name_of(plan->regime),
                    plan->teams, plan->blocks, (plan->groups + plan->blocks - 1) / plan->blocks * kGroup,
                    plan->columns, plan->row_warps, plan->k_warps(), plan->microseconds);
      }
}
