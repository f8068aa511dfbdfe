// The choice of a plan: the cost model.
#pragma once

#include <cstdint>
#include <optional>

#include "../layer_args.h"
#include "plan.h"

namespace prnn::cuda {

// Whether a built-in cell has CUDA kernels, and its model; throws std::runtime_error where it has none.
bool has_kernels(Cell cell);
[[noreturn]] void no_kernels(Cell cell);
const CellModel& model_of(Cell cell);

// The model of a cell written in Python. `resident` is an estimate: prnn/codegen/gpu.py compiles a kernel with fewer
// where it would spill.
CellModel model_of_user_cell(const CellRow& row);

// What a plan is for: a pass of a layer.
struct Recurrence {
  const CellModel& cell;
  Dtype dtype;
  int64_t B, H;
  bool backward, tf32;  // tf32 is permitted, not required
  int64_t K = -1;       // as Layer::K

  bool float32() const { return dtype == Dtype::float32; }
  bool product() const { return K < 0 || K > 1; }  // else a unit meets its own h alone, or none
  int64_t heads() const { return product() && K > 0 ? H / K : 1; }
};

inline int resident_fragments(const Plan& plan, const Recurrence& of) {
  return of.cell.resident[static_cast<int>(plan.scheme)][of.float32()][of.backward][plan.shape];
}
inline SharedMemory shared_memory_of(const Plan& plan, const Recurrence& of) {
  return SharedMemory(plan, plan.scheme, plan.shape, of.cell.gates,
                      constants_of(plan.scheme, of.backward, of.cell.gates, of.cell.params),
                      resident_fragments(plan, of), of.backward, of.float32());
}

// What a block has of each publication, its own share included, in bytes.
inline double received_bytes(const Plan& plan, bool float32) {
  if (plan.scheme == Scheme::sums) return double(plan.blocks) * plan.most_groups() * plan.pairs() * kSumPair;
  return double(plan.k_groups) * kGroup * plan.columns * (float32 ? 4 : 2);
}

// Bytes of global memory that the teams exchange through: [heads][teams][kSlots][state_size]. Those of each team's
// first kCleared slots are 0xFF when the kernel starts; it clears the others itself before they are polled.
inline int64_t workspace_bytes(const Plan& plan, const SharedMemory& shared) {
  return plan.regime == Regime::grid ? int64_t(plan.teams) * plan.heads * kSlots * shared.state_size : 0;
}

// The device properties that a plan depends on.
struct Device {
  int multiprocessors;
  int shared_memory;  // bytes a block may ask for
  int clusters[4];    // of 2, 4, 8, 16 blocks: how many run at a time; 0: none
  double clock_ghz;
};

// What a plan may use of the device: at most so many multiprocessors, 0 for all, and as large a share of its clusters.
Device limited(Device device, int multiprocessors);

// Constraints on a plan; fields without a value are free.
struct PlanFilter {
  std::optional<Regime> regime;
  std::optional<int> shape, row_warps, blocks, directions, tiles, tf32;

  bool admits(const Plan& plan) const;
};

// The cost model's time of a step of all directions, heads and tiles of the plan.
double step_microseconds(const Plan& plan, const Recurrence& of, const Device& device, const Costs& costs);

// The cheapest plan for `directions` passes; none where the weights fit nowhere or the filter admits none.
std::optional<Plan> make_plan(const Recurrence& of, int directions, const Device& device,
                              const PlanFilter& filter = {});

}  // namespace prnn::cuda
