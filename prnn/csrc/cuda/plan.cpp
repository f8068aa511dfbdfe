#include "plan.h"

#include <algorithm>
#include <cmath>

#include "costs.h"
#include "recurrence.h"

namespace prnn::cuda {

namespace {

// In float32, words from L2 are stored to shared memory, and a barrier follows. No measurement separates it from
// grid_microseconds, so it is not among the costs.
constexpr double kGatherCycles = 100;

// Whether warps receive the state from L2 into registers: those of all rows the same, each for itself.
bool direct(Scheme scheme, bool float32) { return scheme == Scheme::grid && !float32; }

// Latency in microseconds, independent of the multiprocessors' clock, plus cycles.
struct Exchanged {
  double microseconds, cycles;
};

Exchanged exchange_of(const Plan& plan, Scheme scheme, bool float32, const Costs& costs) {
  const double bytes = received_bytes(plan, scheme, float32);
  if (plan.regime == Regime::block) return {0, 0};
  if (plan.regime == Regime::cluster)
    return {0, costs.cluster_cycles + bytes * (plan.blocks - 1) / plan.blocks / costs.cluster_bytes};
  const double each = bytes * (direct(scheme, float32) ? plan.row_warps : 1);
  const double all = each * plan.blocks * plan.teams / costs.grid_bytes_of_all;
  const double gather = direct(scheme, float32) ? 0 : kGatherCycles;
  return {costs.grid_microseconds, gather + std::max(each / costs.grid_bytes, all)};
}

bool same(const std::optional<int>& wanted, int actual) { return !wanted || *wanted == actual; }

}  // namespace

Device limited(Device device, int multiprocessors) {
  const int all = device.multiprocessors;
  if (multiprocessors < 1 || multiprocessors >= all) return device;
  device.multiprocessors = multiprocessors;
  for (int& clusters : device.clusters) clusters = clusters * multiprocessors / all;
  return device;
}

bool PlanFilter::admits(const Plan& plan) const {
  return (!regime || *regime == plan.regime) && same(shape, plan.shape) && same(row_warps, plan.row_warps) &&
         same(blocks, plan.blocks) && same(directions, plan.directions) && same(tiles, plan.tiles) &&
         same(tf32, plan.tf32);
}

double step_microseconds(const Plan& plan, Cell cell, Dtype dtype, bool backward, const Device& device,
                         const Costs& costs) {
  const bool float32 = dtype == Dtype::float32, exact = float32 && !plan.tf32;
  const int G = static_cast<int>(gates(cell));
  const Scheme scheme = scheme_of(plan, cell, backward, float32);
  const bool sums = scheme == Scheme::sums;
  const Shape shape = shape_of(scheme, float32, plan.shape);
  const double rows = row_tiles(G, backward, shape.groups), column_tiles = (shape.columns + 7) / 8;
  const double own = plan.warp_k_groups();
  // Where warps have rows of all units, the last of them may have none.
  const double warps = sums ? (plan.groups + shape.groups - 1) / shape.groups : kWarps;
  const double beyond = std::max(0.0, own - resident_fragments(cell, scheme, backward, float32, plan.shape));
  const double fragment =
      exact ? costs.exact_cycles * shape.columns : (float32 ? costs.tf32_cycles : costs.tensor_cycles) * column_tiles;
  const double arithmetic = std::ceil(warps / 4) * rows * own * fragment;
  const double state =
      direct(scheme, float32) ? 0 : warps * own * (exact ? 256 * shape.columns : (float32 ? 512 : 256) * column_tiles);
  const double weights = warps * beyond * rows * (float32 ? 1024 : 512);
  const double product = std::max(arithmetic, (state + weights) / costs.shared_bytes);
  const double sum =
      (sums ? received_bytes(plan, scheme, float32) : 2 * kWarps * rows * column_tiles * 512) / costs.shared_bytes;
  // A warp's items one after another.
  const int sharing = sums ? kWarps : plan.k_warps();
  const int each = (items(sums ? plan.most_groups() : shape.groups, plan.columns) + sharing - 1) / sharing;
  const double pointwise = pointwise_cycles(cell, backward, costs) * each;
  const double besides = costs.step_cycles + (plan.k_warps() > 1 ? costs.split_cycles : 0);
  const Exchanged exchange = exchange_of(plan, scheme, float32, costs);
  const double cycles = product + sum + pointwise + besides + exchange.cycles;
  const int rounds = (plan.tiles + plan.teams / plan.directions - 1) / (plan.teams / plan.directions);
  return rounds * (exchange.microseconds + cycles / (device.clock_ghz * 1e3));
}

std::optional<Plan> make_plan(Cell cell, Dtype dtype, int64_t B, int64_t H, bool backward, bool tf32, int directions,
                              const Device& device, const PlanFilter& filter) {
  const bool float32 = dtype == Dtype::float32;
  const int G = static_cast<int>(gates(cell));
  std::optional<Plan> best;
  if (!has_kernels(cell)) no_kernels(cell);
  if (H < 1 || H > 1 << 16 || B > 1 << 30 || B * H >= 1 << 28) return best;  // offsets within a step are int
  for (const Regime regime : {Regime::block, Regime::cluster, Regime::grid}) {
    const Scheme scheme = scheme_of(regime, backward, G, float32);
    for (int index = 0; index < kShapes; ++index)
      for (int row_warps = 1; row_warps <= kWarps; row_warps *= 2)
        for (int size = 0; size < (regime == Regime::cluster ? 4 : 1); ++size) {
          Plan plan{};
          const Shape shape = shape_of(scheme, float32, index);
          plan.regime = regime, plan.shape = index, plan.row_warps = row_warps, plan.directions = directions;
          plan.tf32 = float32 && tf32;
          plan.groups = static_cast<int>((H + kGroup - 1) / kGroup);
          const int most = shape.groups * row_warps, needed = (plan.groups + most - 1) / most;
          plan.blocks = regime == Regime::cluster ? 2 << size : needed;
          if (plan.blocks > plan.groups) continue;
          plan.k_groups = (scheme == Scheme::sums ? plan.most_groups() : plan.groups) * (backward ? G : 1);
          if (regime == Regime::block ? needed > 1 : plan.blocks < 2) continue;
          if (plan.tf32 && shape.columns != 8) continue;
          const int room = (regime == Regime::cluster ? device.clusters[size] : device.multiprocessors / plan.blocks);
          if (room < directions) continue;
          const int64_t fewest = std::max<int64_t>(1, (B + shape.columns - 1) / shape.columns);
          // As few tiles as hold the batch; as many as run side by side: then each has less to exchange; and tiles of
          // few columns, with which a block may have more units, so that more run side by side.
          const auto holding = [&](int64_t columns) { return std::max<int64_t>(fewest, (B + columns - 1) / columns); };
          for (const int64_t tiles :
               {fewest, std::min(std::max<int64_t>(B, 1), std::max<int64_t>(fewest, room / directions)), holding(4),
                holding(2)}) {
            plan.columns = static_cast<int>((std::max<int64_t>(B, 1) + tiles - 1) / tiles);
            plan.tiles = static_cast<int>((std::max<int64_t>(B, 1) + plan.columns - 1) / plan.columns);
            plan.teams = std::min(plan.tiles, room / directions) * directions;
            if (!plan.fits(scheme, float32)) continue;
            if (SharedMemory(plan, cell, backward, float32).total > device.shared_memory) continue;
            if (!filter.admits(plan)) continue;
            plan.microseconds = step_microseconds(plan, cell, dtype, backward, device, Costs{});
            if (!best || plan.microseconds < best->microseconds) best = plan;
          }
        }
  }
  if (float32 && tf32) {  // tf32 is permitted, not required
    const auto exact = make_plan(cell, dtype, B, H, backward, false, directions, device, filter);
    if (exact && (!best || exact->microseconds < best->microseconds)) return exact;
  }
  return best;
}

}  // namespace prnn::cuda
