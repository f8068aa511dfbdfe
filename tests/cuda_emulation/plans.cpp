// Prints, as a table in markdown, what the cost model plans for the rows of docs/kernels.md on an H200, and what a step
// costs on paper. `build plans` runs it; a test compares the document with it.
#include <cstdio>
#include <utility>

#include "planner.h"

int main() {
  using namespace prnn;
  using namespace prnn::cuda;
  // 132 multiprocessors; 7 clusters of 16 is what to count on, since some GPCs have no 16 left.
  const Device h200{132, 227 << 10, {66, 30, 15, 7}, 1.98};
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
      {"bidirectional LSTM bf16 H512 B16 T512, one layer", Cell::lstm, Dtype::bfloat16, 16, 512, 2},
  };
  std::printf(
      "| shape | pass | regime | teams x blocks | units | columns | warps | weights in registers | MFLOP | KiB in | "
      "shared KiB | us |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n");
  for (const Row& row : rows)
    for (const bool backward : {false, true}) {
      const Recurrence of{model_of(row.cell), row.dtype, row.B, row.H, backward, false};
      const auto plan = make_plan(of, row.directions, h200);
      if (!plan) return 1;
      const bool float32 = row.dtype == Dtype::float32;
      const int own = plan->warp_k_groups();
      const int resident = resident_fragments(*plan, of);
      std::printf("| %s | %s | %s | %d x %d | %d | %d | %d x %d | %d %% | %.1f | %.1f | %d | %.2f |\n", row.name,
                  backward ? "backward" : "forward", name_of(plan->regime), plan->teams, plan->blocks,
                  (plan->groups + plan->blocks - 1) / plan->blocks * kGroup, plan->columns, plan->row_warps,
                  plan->k_warps(), own <= resident ? 100 : 100 * resident / own,
                  2e-6 * double(gates(row.cell)) * double(row.H * row.H * row.B) * row.directions,
                  received_bytes(*plan, float32) / 1024, shared_memory_of(*plan, of).total / 1024, plan->microseconds);
    }
  std::printf("\nLargest H with 16 samples:\n\n| | RNN | GRU | LSTM |\n|---|---|---|---|\n");
  for (const auto& [name, dtype] : {std::pair{"16 bits", Dtype::bfloat16}, std::pair{"float32", Dtype::float32}})
    for (const bool backward : {false, true}) {
      std::printf("| %s, %s |", name, backward ? "backward" : "forward");
      for (const Cell cell : {Cell::rnn_tanh, Cell::gru, Cell::lstm}) {
        int64_t most = 0;
        for (int64_t H = 16; H <= 8192; H += 16)
          if (make_plan({model_of(cell), dtype, 16, H, backward, false}, 1, h200)) most = H;
        std::printf(" %lld |", (long long)most);
      }
      std::printf("\n");
    }
}
