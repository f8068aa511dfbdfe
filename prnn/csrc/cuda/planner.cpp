#include "planner.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

namespace prnn::cuda {

namespace {

// In float32, words from L2 are stored to shared memory, and a barrier follows. No measurement separates it from
// grid_microseconds, so it is not among the costs.
constexpr double kGatherCycles = 100;

// A step without a product: the latency of loads, of several steps together, and the rest, forward and backward; by
// simulation of the leaky cell (benchmarks/NOTES.md). A multiprocessor has room for two blocks.
constexpr double kLoadCycles = 600, kUnitsCycles[2] = {170, 380};
constexpr int kUnitsBlocks = 2;

// Whether warps receive the state from L2 into registers: those of all rows the same, each for itself.
bool direct(Scheme scheme, bool float32) { return scheme == Scheme::grid && !float32; }

// Latency in microseconds, independent of the multiprocessors' clock, plus cycles.
struct Exchanged {
  double microseconds, cycles;
};

Exchanged exchange_of(const Plan& plan, bool float32, const Costs& costs) {
  const double bytes = received_bytes(plan, float32);
  if (plan.regime == Regime::block) return {0, 0};
  if (plan.regime == Regime::cluster)
    return {0, costs.cluster_cycles + bytes * (plan.blocks - 1) / plan.blocks / costs.cluster_bytes};
  const double each = bytes * (direct(plan.scheme, float32) ? plan.row_warps : 1);
  const double all = each * plan.blocks * plan.teams * plan.heads / costs.grid_bytes_of_all;
  const double gather = direct(plan.scheme, float32) ? 0 : kGatherCycles;
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

bool has_kernels(Cell cell) {
#define PRNN_IS(Struct, name) || cell == Cell::name
  return false PRNN_CUDA_CELLS(PRNN_IS);
#undef PRNN_IS
}

void no_kernels(Cell cell) {
  throw std::runtime_error(std::string("prnn: there are no CUDA kernels of ") + name_of(cell));
}

const CellModel& model_of(Cell cell) {
  switch (cell) {
#define PRNN_MODEL(Struct, name) \
  case Cell::name:               \
    return CudaCell<Cell::name>::kModel;
    PRNN_CUDA_CELLS(PRNN_MODEL)
#undef PRNN_MODEL
    default:
      no_kernels(cell);
  }
}

namespace {

// By what else a thread has in its 255 registers: accumulators, state that is on its way, an item's values and
// addresses, and what all kernels have.
int estimate_of_resident(const CellRow& row, Scheme scheme, bool float32, bool backward, int index) {
  constexpr int kOther = 64;
  if (scheme == Scheme::units) return 0;
  const Shape shape = shape_of(scheme, float32, index);
  const int G = static_cast<int>(row.gates), tiles = row_tiles(G, backward, shape.groups);
  const int words = float32 ? 8 : 4, column_tiles = (shape.columns + 7) / 8;  // of a fragment
  const int sums = float32 ? tiles * 2 * shape.columns : tiles * 4 * column_tiles;
  const int flight = scheme == Scheme::grid ? 32 : 8 * column_tiles;
  const int values = static_cast<int>(row.states + row.saved + row.inputs);
  const int item = backward ? 2 * values + 3 * G + static_cast<int>(row.params) + 12 : values + G + 10;
  const int free = 255 - kOther - sums - flight - item * (scheme == Scheme::local ? 2 : 1);
  return std::max(0, free / (tiles * words));
}

}  // namespace

CellModel model_of_user_cell(const CellRow& row) {
  CellModel model{};
  model.name = row.name, model.any_scheme = true;
  model.gates = static_cast<int>(row.gates), model.params = static_cast<int>(row.params);
  model.widest = static_cast<int>(std::max({row.gates, row.saved, row.inputs, row.params}));
  model.loads[0] = static_cast<int>(row.gates + row.inputs);
  model.loads[1] = static_cast<int>(row.saved + row.inputs) + 2;  // and h, and the output's gradient
  // No kernel of it has been timed: as of the built-in cell of about as many gates.
  const CellModel& like = model_of(row.gates < 2 ? Cell::rnn_tanh : row.gates < 4 ? Cell::gru : Cell::lstm);
  std::copy(like.cycles, like.cycles + 2, model.cycles);
  for (int scheme = 0; scheme < kSchemes; ++scheme)
    for (const bool float32 : {false, true})
      for (const bool backward : {false, true})
        for (int shape = 0; shape < kShapes; ++shape)
          model.resident[scheme][float32][backward][shape] =
              estimate_of_resident(row, static_cast<Scheme>(scheme), float32, backward, shape);
  return model;
}

double step_microseconds(const Plan& plan, const Recurrence& of, const Device& device, const Costs& costs) {
  const bool float32 = of.float32(), exact = float32 && !plan.tf32, backward = of.backward;
  const int G = of.cell.gates;
  const Scheme scheme = plan.scheme;
  const double launches = std::ceil(double(of.heads()) / plan.heads);
  const int rounds = (plan.tiles + plan.teams / plan.directions - 1) / (plan.teams / plan.directions);
  if (scheme == Scheme::units)
    return std::max(1.0, double(plan.blocks) * plan.teams / (kUnitsBlocks * device.multiprocessors)) *
           (kLoadCycles / steps_ahead(of.cell.loads[backward]) + kUnitsCycles[backward]) / (device.clock_ghz * 1e3);
  const double item = costs.*of.cell.cycles[backward];
  const bool sums = scheme == Scheme::sums;
  const Shape shape = shape_of(scheme, float32, plan.shape);
  const double rows = row_tiles(G, backward, shape.groups), column_tiles = (shape.columns + 7) / 8;
  const double own = plan.warp_k_groups();
  // Where warps have rows of all units, the last of them may have none.
  const double warps = sums ? (plan.groups + shape.groups - 1) / shape.groups : kWarps;
  const double beyond = std::max(0.0, own - resident_fragments(plan, of));
  const double fragment =
      exact ? costs.exact_cycles * shape.columns : (float32 ? costs.tf32_cycles : costs.tensor_cycles) * column_tiles;
  const double arithmetic = std::ceil(warps / 4) * rows * own * fragment;
  const double state = direct(plan.scheme, float32)
                           ? 0
                           : warps * own * (exact ? 256 * shape.columns : (float32 ? 512 : 256) * column_tiles);
  const double weights = warps * beyond * rows * (float32 ? 1024 : 512);
  const double product = std::max(arithmetic, (state + weights) / costs.shared_bytes);
  const double sum =
      (sums ? received_bytes(plan, float32) : 2 * kWarps * rows * column_tiles * 512) / costs.shared_bytes;
  // A warp's items one after another.
  const int sharing = sums ? kWarps : plan.k_warps();
  const int each = (items(sums ? plan.most_groups() : shape.groups, plan.columns) + sharing - 1) / sharing;
  const double pointwise = item * each;
  const double besides = costs.step_cycles + (plan.k_warps() > 1 ? costs.split_cycles : 0);
  const Exchanged exchange = exchange_of(plan, float32, costs);
  const double cycles = product + sum + pointwise + besides + exchange.cycles;
  return launches * rounds * (exchange.microseconds + cycles / (device.clock_ghz * 1e3));
}

namespace {

// Blocks of 16 samples or fewer, and of as many units as their warps have items for; none waits for another.
Plan plan_of_units(const Recurrence& of, int directions) {
  Plan plan{};
  plan.regime = Regime::block, plan.scheme = Scheme::units;
  plan.row_warps = 1, plan.directions = directions, plan.heads = 1;
  plan.groups = static_cast<int>((of.H + kGroup - 1) / kGroup);
  const int64_t B = std::max<int64_t>(of.B, 1), most = shape_of(Scheme::units, of.float32(), 0).columns;
  plan.tiles = static_cast<int>((B + most - 1) / most);
  plan.columns = static_cast<int>((B + plan.tiles - 1) / plan.tiles);
  const int groups = kWarps / plan.pairs();  // of a block
  plan.blocks = (plan.groups + groups - 1) / groups;
  plan.teams = plan.tiles * directions;
  return plan;
}

}  // namespace

std::optional<Plan> make_plan(const Recurrence& of, int directions, const Device& device, const PlanFilter& filter) {
  const int64_t B = of.B, H = of.H, K = of.K < 0 ? H : of.K;
  const bool float32 = of.float32();
  const int G = of.cell.gates;
  std::optional<Plan> best;
  // Offsets within a step are int.
  if (H < 1 || H > 1 << 16 || B > 1 << 30 || B * H >= (int64_t(1) << 31) / std::max(8, of.cell.widest)) return best;
  if (!of.product()) {
    Plan plan = plan_of_units(of, directions);
    plan.microseconds = step_microseconds(plan, of, device, Costs{});
    if (filter.admits(plan)) best = plan;
    return best;
  }
  struct Way {
    Regime regime;
    Scheme scheme;
  };
  std::vector<Way> ways;
  for (const Regime regime : {Regime::block, Regime::cluster, Regime::grid}) {
    ways.push_back({regime, scheme_of(regime, of.backward, G, float32)});
    // A block whose warps have rows of all units has no room for the gradients of many gates.
    if (ways.back().scheme == Scheme::sums && of.cell.any_scheme) ways.push_back({regime, Scheme::local});
  }
  for (const auto& [regime, scheme] : ways) {
    for (int index = 0; index < kShapes; ++index)
      for (int row_warps = 1; row_warps <= kWarps; row_warps *= 2)
        for (int size = 0; size < (regime == Regime::cluster ? 4 : 1); ++size) {
          Plan plan{};
          const Shape shape = shape_of(scheme, float32, index);
          plan.regime = regime, plan.scheme = scheme, plan.shape = index, plan.row_warps = row_warps;
          plan.directions = directions, plan.tf32 = float32 && of.tf32;
          plan.groups = static_cast<int>((K + kGroup - 1) / kGroup);
          const int most = shape.groups * row_warps, needed = (plan.groups + most - 1) / most;
          plan.blocks = regime == Regime::cluster ? 2 << size : needed;
          if (plan.blocks > plan.groups) continue;
          plan.k_groups = (scheme == Scheme::sums ? plan.most_groups() : plan.groups) * (of.backward ? G : 1);
          if (regime == Regime::block ? needed > 1 : plan.blocks < 2) continue;
          if (plan.tf32 && shape.columns != 8) continue;
          const int room = (regime == Regime::cluster ? device.clusters[size] : device.multiprocessors / plan.blocks);
          if (room < directions) continue;
          plan.heads = static_cast<int>(std::min<int64_t>(of.heads(), room / directions));
          const int64_t side_by_side = room / (directions * plan.heads);  // tiles
          const int64_t fewest = std::max<int64_t>(1, (B + shape.columns - 1) / shape.columns);
          // As few tiles as hold the batch; as many as run side by side: then each has less to exchange; and tiles of
          // few columns, with which a block may have more units, so that more run side by side.
          const auto holding = [&](int64_t columns) { return std::max<int64_t>(fewest, (B + columns - 1) / columns); };
          for (const int64_t tiles :
               {fewest, std::min(std::max<int64_t>(B, 1), std::max<int64_t>(fewest, side_by_side)), holding(4),
                holding(2)}) {
            plan.columns = static_cast<int>((std::max<int64_t>(B, 1) + tiles - 1) / tiles);
            plan.tiles = static_cast<int>((std::max<int64_t>(B, 1) + plan.columns - 1) / plan.columns);
            plan.teams = static_cast<int>(std::min<int64_t>(plan.tiles, side_by_side)) * directions;
            if (!plan.fits(float32)) continue;
            if (shared_memory_of(plan, of).total > device.shared_memory) continue;
            if (!filter.admits(plan)) continue;
            plan.microseconds = step_microseconds(plan, of, device, Costs{});
            if (!best || plan.microseconds < best->microseconds) best = plan;
          }
        }
  }
  if (float32 && of.tf32) {
    Recurrence exactly = of;
    exactly.tf32 = false;
    const auto exact = make_plan(exactly, directions, device, filter);
    if (exact && (!best || exact->microseconds < best->microseconds)) return exact;
  }
  return best;
}

}  // namespace prnn::cuda
