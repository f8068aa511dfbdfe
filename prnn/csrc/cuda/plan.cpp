#include "plan.h"

#include <algorithm>

#include "layer.h"

namespace prnn::cuda {

namespace {

// Of an H100 or H200, from data sheets and published measurements; the model compares plans of one layer, so what
// matters is their proportion. docs/kernels.md has the sources; benchmarks/micro.cu measures most of them.
constexpr double kTensorCycles = 6.7;       // an m16n8k16 in one of four tensor cores: 2048 FMA at 60 % of dense bf16
constexpr double kSharedBytes = 128;        // a cycle
constexpr double kBarrierCycles = 40;       // of a block
constexpr double kClusterCycles = 350;      // a store into another block, its barrier seen
constexpr double kClusterBytes = 14;        // a cycle, into one block from all others
constexpr double kGridMicroseconds = 0.65;  // a store into L2, and the load that sees it
constexpr double kGridBytes = 40, kGridBytesOfAll = 3100;  // a cycle, out of L2 into one block, into all
constexpr double kPointwiseCycles[2][3] = {{90, 230, 260}, {110, 190, 220}};  // an item: forward, backward

double step_microseconds(const Plan& plan, int G, bool backward, bool float32, const Device& device) {
  const Shape shape = shape_of(float32, plan.shape);
  const double rows = row_tiles(G, backward, shape.groups), column_tiles = (shape.columns + 7) / 8;
  const double own = plan.warp_k_groups();
  const double beyond = std::max(0.0, own - resident_fragments(G, backward, float32, plan.shape));
  const bool exact = float32 && !plan.tf32;
  const double arithmetic =
      kWarps * rows * own / 4 * (exact ? 8.0 * shape.columns : kTensorCycles * column_tiles * (float32 ? 2 : 1));
  const double state = kWarps * own * (exact ? 2.0 * shape.columns : (float32 ? 4.0 : 2.0) * column_tiles);
  const double weights = kWarps * beyond * rows * (float32 ? 1024 : 512) / kSharedBytes;
  const double reduction = 2 * kWarps * rows * column_tiles * 512 / kSharedBytes + (plan.k_warps() > 1 ? 60 : 20);
  const int each = (items(shape.groups, shape.columns) + plan.k_warps() - 1) / plan.k_warps();
  const double pointwise = kPointwiseCycles[backward][G == 1 ? 0 : G - 2] * (0.6 + 0.4 * each);
  double exchange = kBarrierCycles, fixed = 0;
  const double bytes = double(plan.k_groups) * kGroup * plan.columns * (float32 ? 4 : 2);
  if (plan.regime == Regime::cluster) {
    exchange += kClusterCycles + bytes * (plan.blocks - 1) / plan.blocks / kClusterBytes;
  } else if (plan.regime == Regime::grid) {
    exchange = std::max(bytes / kGridBytes, bytes * plan.blocks * plan.teams / kGridBytesOfAll);
    exchange += 60;  // the last of them into shared memory; the others while more are coming
    fixed = kGridMicroseconds;
  }
  const double product = std::max(arithmetic, state + weights) + 60;
  const int rounds = (plan.tiles + plan.teams / plan.directions - 1) / (plan.teams / plan.directions);
  return rounds * (fixed + (product + reduction + pointwise + exchange) / (device.clock_ghz * 1e3));
}

}  // namespace

std::optional<Plan> make_plan(Cell cell, Dtype dtype, int64_t B, int64_t H, bool backward, bool tf32, int directions,
                              const Device& device, std::optional<Regime> only) {
  const bool float32 = dtype == Dtype::float32;
  const int G = static_cast<int>(gates(cell));
  std::optional<Plan> best;
  if (H < 1 || H > 1 << 16 || B > 1 << 30) return best;
  for (const Regime regime : {Regime::block, Regime::cluster, Regime::grid}) {
    if (only && *only != regime) continue;
    for (int index = 0; index < kShapes; ++index)
      for (int row_warps = 1; row_warps <= kWarps; row_warps *= 2)
        for (int size = 0; size < (regime == Regime::cluster ? 4 : 1); ++size) {
          Plan plan{};
          const Shape shape = shape_of(float32, index);
          plan.regime = regime, plan.shape = index, plan.row_warps = row_warps, plan.directions = directions;
          plan.tf32 = float32 && tf32;
          plan.groups = static_cast<int>((H + kGroup - 1) / kGroup);
          plan.k_groups = plan.groups * (backward ? G : 1);
          const int most = shape.groups * row_warps, needed = (plan.groups + most - 1) / most;
          plan.blocks = regime == Regime::cluster ? 2 << size : needed;
          if (plan.blocks < needed || plan.blocks > plan.groups) continue;
          if (regime == Regime::block ? needed > 1 : plan.blocks < 2) continue;
          if (plan.tf32 && shape.columns != 8) continue;
          if (items(shape.groups, shape.columns) > kMostItems * plan.k_warps()) continue;
          if (SharedMemory(plan, cell, backward, float32).total > device.shared_memory) continue;
          const int room = (regime == Regime::cluster ? device.clusters[size] : device.multiprocessors / plan.blocks);
          if (room < directions) continue;
          const int64_t fewest = std::max<int64_t>(1, (B + shape.columns - 1) / shape.columns);
          // As few tiles as hold the batch; or as many as run side by side: then each has less to exchange.
          for (const int64_t tiles :
               {fewest, std::min(std::max<int64_t>(B, 1), std::max<int64_t>(fewest, room / directions))}) {
            plan.columns = static_cast<int>((std::max<int64_t>(B, 1) + tiles - 1) / tiles);
            plan.tiles = static_cast<int>((std::max<int64_t>(B, 1) + plan.columns - 1) / plan.columns);
            plan.teams = std::min(plan.tiles, room / directions) * directions;
            plan.microseconds = step_microseconds(plan, G, backward, float32, device);
            if (!best || plan.microseconds < best->microseconds) best = plan;
          }
        }
  }
  if (float32 && tf32) {  // a permission, no order
    const auto exact = make_plan(cell, dtype, B, H, backward, false, directions, device, only);
    if (exact && (!best || exact->microseconds < best->microseconds)) return exact;
  }
  return best;
}

}  // namespace prnn::cuda
