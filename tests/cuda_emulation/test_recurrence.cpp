// Every cell, element, pass, regime and shape of the CUDA kernels on the emulated GPU, against the reference in double.
//
//     test_recurrence [thin [seed [first [long]]]]      one case in `thin`, other schedules; up to the first failure;
//     on
//                                                       grids alone, of steps enough that slots are used again
#include "instances.cuh"
#include "run.h"
#include "timeouts.h"

#ifdef PRNN_ONLY_LSTM
#define PRNN_TESTED(X) X(Lstm, lstm)
#else
#define PRNN_TESTED(X) PRNN_CUDA_CELLS(X)
#endif
#ifdef PRNN_ONLY_BFLOAT16
#define PRNN_TESTED_DTYPES Dtype::bfloat16
#define PRNN_KERNELS(Struct) kernels_of<quick::Struct, Bfloat16>()
#else
#define PRNN_TESTED_DTYPES Dtype::float32, Dtype::bfloat16, Dtype::float16
#define PRNN_KERNELS(Struct) kernels_of<exact::Struct, quick::Struct>(dtype)
#endif

namespace prnn::test {

namespace {

using cuda::Plan;
using cuda::Regime;

cuda::Kernels kernels_of(Cell cell, [[maybe_unused]] Dtype dtype) {
  using namespace cuda;
  switch (cell) {
#define PRNN_CASE(Struct, name) \
  case Cell::name:              \
    return cuda::PRNN_KERNELS(Struct);
    PRNN_TESTED(PRNN_CASE)
#undef PRNN_CASE
    default:
      no_kernels(cell);
  }
}

std::string name_of(const Plan& plan) {
  return std::string(cuda::name_of(plan.regime)) + " shape" + std::to_string(plan.shape) + " " +
         std::to_string(plan.row_warps) + "x" + std::to_string(plan.k_warps()) + " warps, " +
         std::to_string(plan.blocks) + " blocks, " + std::to_string(plan.teams) + " teams, " +
         std::to_string(plan.directions) + " directions, " + std::to_string(plan.tiles) + " tiles of " +
         std::to_string(plan.columns) + (plan.tf32 ? " tf32" : "");
}

cuda::Recurrence recurrence_of(const Case& of, bool backward, bool tf32) {
  return {cuda::model_of(of.cell), of.dtype, of.B, of.H, backward, tf32};
}

// A plan that holds the case, of this regime: the cost model's for a small GPU, or one that chance draws. False if
// there is none.
bool draw_plan(Plan& plan, const Case& of, bool backward, Regime regime, bool tf32, Random& random) {
  const bool float32 = of.dtype == Dtype::float32;
  if (random.chance(0.3)) {
    const int directions = random.chance(0.25) ? 2 : 1;
    const cuda::Device small{8, 227 << 10, {4, 3, 2, 1}, 1.7};
    cuda::PlanFilter filter;
    filter.regime = regime;
    const auto planned = cuda::make_plan(recurrence_of(of, backward, tf32), directions, small, filter);
    if (planned && planned->tf32 == tf32) return plan = *planned, true;
  }
  for (int attempt = 0; attempt < 200; ++attempt) {
    plan = {};
    plan.regime = regime, plan.tf32 = tf32, plan.heads = 1;
    plan.shape = int(random.integer(0, cuda::kShapes - 1));
    plan.row_warps = 1 << random.integer(0, 3);
    const cuda::Scheme scheme = plan.scheme = cuda::scheme_of(regime, backward, int(of.G()), float32);
    const cuda::Shape shape = cuda::shape_of(scheme, float32, plan.shape);
    if (scheme == cuda::Scheme::sums) plan.row_warps = cuda::kWarps;
    plan.groups = int((of.H + cuda::kGroup - 1) / cuda::kGroup);
    const int own = shape.groups * plan.row_warps, needed = (plan.groups + own - 1) / own;
    plan.blocks = regime == Regime::block ? 1 : regime == Regime::cluster ? 2 << random.integer(0, 3) : needed;
    plan.columns = int(random.integer(1, std::min<int64_t>(shape.columns, std::max<int64_t>(1, of.B))));
    plan.tiles = int((of.B + plan.columns - 1) / plan.columns);
    plan.directions = random.chance(0.25) ? 2 : 1;
    plan.teams = plan.directions * int(random.integer(1, std::min(2, std::max(1, plan.tiles))));
    if (tf32 && shape.columns != 8) continue;
    plan.k_groups = (scheme == cuda::Scheme::sums ? plan.most_groups() : plan.groups) * (backward ? int(of.G()) : 1);
    if (plan.blocks > std::min(16, plan.groups) || !plan.fits(float32)) continue;
    if (cuda::shared_memory_of(plan, recurrence_of(of, backward, tf32)).total > 227 << 10) continue;
    return true;
  }
  return false;
}

template <class Pass, class Kernel>
bool launch(const Case& of, const Plan& plan, const cuda::Directions<Pass>& passes, Kernel kernel, bool backward,
            uint64_t seed) {
  const cuda::SharedMemory shared = cuda::shared_memory_of(plan, recurrence_of(of, backward, plan.tf32));
  // What the launch does not clear is from another use of the memory: ones, a word as good as any.
  std::vector<uint32_t> workspace(size_t(cuda::workspace_bytes(plan, shared) / 4) + 4, 0x3F803F80u);
  auto* aligned = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(workspace.data()) + 15) / 16 * 16);
  for (int team = 0; plan.regime == Regime::grid && team < plan.teams; ++team)
    std::memset(aligned + int64_t(team) * cuda::kSlots * shared.state_size, 0xFF,
                size_t(cuda::kCleared) * size_t(shared.state_size));
  const int cluster = plan.regime == Regime::cluster ? plan.blocks : 1;
  cuda::Fault recorded{};
  cuda::WaitLimit limit = cuda::wait_limit(prnn::name_of(of.cell), passes.of[0], plan, backward);
  limit.fault = cuda::record = &recorded;
  limit.polls = 1;
  std::string error = emulation::launch({plan.teams * plan.blocks, cuda::kThreads, cluster, shared.total, seed},
                                        [&] { kernel(plan, limit, passes, aligned); });
  if (!error.empty() && recorded.state != cuda::Fault::none) error += ": " + cuda::fault();
  cuda::record = nullptr;
  if (!error.empty()) fail(of.name() + (backward ? ", backward, " : ", forward, ") + name_of(plan) + ": " + error);
  return error.empty();
}

struct Seen {
  int64_t runs[kCellCount][4][3][2] = {};  // of each cell; fp32, bf16, fp16, tf32; regime; pass
  int64_t beyond = 0, rounds = 0;          // with weights in shared memory; with more tiles than teams
  double worst[4] = {};                    // of fp32, bf16, fp16, tf32

  int64_t of(int regime) const {
    int64_t count = 0;
    for (const auto& cell : runs)
      for (const auto& kind : cell) count += kind[regime][0] + kind[regime][1];
    return count;
  }
};

double tolerance(const Case& of, bool tf32) {
  return tf32 ? 5e-3 : of.dtype == Dtype::float32 ? 1e-5 : of.dtype == Dtype::bfloat16 ? 1.5e-2 : 4e-3;
}

// The results of each direction; two of them read the same and must find the same.
using Results = std::vector<std::vector<Array>>;

template <bool kBackward>
Results run(Problem& problem, const Plan& plan, uint64_t seed, bool& well) {
  const Case& of = problem.of;
  const cuda::KernelsOfShapes kernels = kernels_of(of.cell, of.dtype).of(plan.regime);
  Results results;
  if constexpr (kBackward) {
    cuda::Directions<cuda::SerialBackward> passes{};
    for (int d = 0; d < plan.directions; ++d) {
      results.push_back(problem.backward_results(passes.of[d]));
      if (!splits_gates(of.cell)) continue;
      results[d].emplace_back("grad_gates_h", of.dtype, of.layout, of.T, of.B, of.G() * of.H);
      passes.of[d].grad_gates_h = results[d].back().sequence(of.dtype).data;
    }
    well = launch(of, plan, passes, kernels.backward[plan.shape], true, seed);
  } else {
    cuda::Directions<Forward> passes{};
    for (int d = 0; d < plan.directions; ++d) results.push_back(problem.forward_results(passes.of[d]));
    well = launch(of, plan, passes, kernels.forward[plan.shape], false, seed);
  }
  return results;
}

template <bool kBackward>
void test_pass(Problem& problem, Regime regime, bool tf32, Random& random, Seen& seen) {
  const Case& of = problem.of;
  Plan plan;
  if (!draw_plan(plan, of, kBackward, regime, tf32, random)) return;
  const std::string who = (kBackward ? "backward, " : "forward, ") + name_of(plan);
  bool well = false;
  const Results once = run<kBackward>(problem, plan, random.bits(), well);
  if (!well) return;
  double& worst = seen.worst[tf32 ? 3 : int(of.dtype)];
  for (const std::vector<Array>& one : once) worst = std::max(worst, problem.check(one, tolerance(of, tf32), who));
  // In a long pass a word that was read too early may make too little of a difference for the tolerance.
  if (of.T > cuda::kSlots || random.chance(0.25)) {
    const Results again = run<kBackward>(problem, plan, random.bits(), well);
    for (size_t d = 0; well && d < once.size(); ++d)
      expect_same(once[d], again[d], of.name() + ", " + who + ", another schedule");
  }
  ++seen.runs[int(of.cell)][tf32 ? 3 : int(of.dtype)][int(regime)][kBackward];
  seen.rounds += plan.tiles * plan.directions > plan.teams;
  seen.beyond += plan.warp_k_groups() > cuda::resident_fragments(plan, recurrence_of(of, kBackward, tf32));
}

struct Size {
  int64_t T, B, H;
};
constexpr Size kSizes[] = {{1, 1, 1},   {1, 3, 17}, {5, 1, 3},  {4, 9, 40}, {7, 2, 100}, {3, 17, 33},
                           {2, 3, 250}, {0, 2, 5},  {9, 4, 16}, {2, 3, 80}, {60, 2, 40}};  // longer than slots last

std::vector<Case> variations(Case plain) {
  std::vector<Case> all;
  const auto add = [&](auto change) {
    Case changed = plain;
    change(changed);
    changed.input = false, changed.I = 1;
    changed.gradients &= kGradOutput | kGradHN | kGradCN | kGradX | kGradH0 | kGradC0;
    changed.seed = plain.seed * 131 + all.size();
    all.push_back(changed);
  };
  add([](Case&) {});
  add([](Case& c) { c.lengths = true, c.layout = Layout::batch_first; });
  add([](Case& c) { c.resets = true, c.biases = false; });
  add([](Case& c) { c.reverse = true, c.layout = Layout::halves; });
  add([](Case& c) { c.lengths = c.resets = true, c.layout = Layout::gaps; });
  add([](Case& c) { c.lengths = c.resets = c.reverse = true; });
  add([](Case& c) { c.resets = c.reverse = true, c.saves = false; });
  add([](Case& c) { c.lengths = true, c.gradients = kAll & ~kGradOutput; });
  add([](Case& c) { c.resets = true, c.gradients = kAll & ~(kGradHN | kGradCN | kGradH0 | kGradC0); });
  return all;
}

void test_case(const Case& of, bool grid, Random& random, Seen& seen) {
  watchdog(120, of.name());
  Problem problem(of);
  for (const Regime regime : {Regime::block, Regime::cluster, Regime::grid})
    for (const bool tf32 : {false, true}) {
      if (grid && regime != Regime::grid) continue;
      if (of.H > 200 && regime != Regime::cluster) continue;  // a size for clusters of 16 blocks
      if (tf32 && of.dtype != Dtype::float32) continue;
      test_pass<false>(problem, regime, tf32, random, seen);
      if (of.saves) test_pass<true>(problem, regime, tf32, random, seen);
    }
}

// A sample without steps passes its gradient on, whatever the weights: zero times infinity must not come in.
void test_infinite_weight(Cell cell, Dtype dtype, Random& random) {
  Case of{cell, dtype, 3, 3, 1, 40};
  of.lengths = of.infinite = true, of.input = false;
  of.gradients = kGradOutput | kGradHN | kGradX | kGradH0;
  Problem problem(of);
  const auto& lengths = problem.values.lengths;
  const int64_t none = std::find(lengths.begin(), lengths.end(), 0) - lengths.begin();
  for (const Regime regime : {Regime::block, Regime::cluster, Regime::grid}) {
    Plan plan;
    bool well = false;
    if (!draw_plan(plan, of, true, regime, false, random)) continue;
    for (const std::vector<Array>& results : run<true>(problem, plan, random.bits(), well))
      for (const Array& result : results)
        for (int64_t i = none * of.H; result.name == std::string("grad_h0") && i < (none + 1) * of.H; ++i)
          if (result.buffer.get(i) != problem.values.grad_h_n[size_t(i)])
            return fail(of.name() + ", " + name_of(plan) + ": grad_h0[" + std::to_string(i) + "] is not grad_h_n's");
  }
}

}  // namespace

}  // namespace prnn::test

int main(int argc, char** argv) {
  using namespace prnn;
  using namespace prnn::test;
  const uint64_t thin = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  const bool first = argc > 3, grid = argc > 4;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  Seen seen;
  uint64_t number = 0;
#define PRNN_CELL(Struct, name) Cell::name,
  const std::vector<Cell> cells = {PRNN_TESTED(PRNN_CELL)};
#undef PRNN_CELL
  for (const Cell cell : cells)
    for (const Dtype dtype : {PRNN_TESTED_DTYPES}) {
      Random random(seed);
      if (!grid) test_infinite_weight(cell, dtype, random);
      for (const Size& size : kSizes)
        for (Case of : variations({cell, dtype, size.T, size.B, 1, size.H})) {
          of.seed += ++number * 977;
          Random random(of.seed + seed * 7919);
          if (grid != (of.T > cuda::kSlots)) continue;
          if (Random(number + seed * 31).bits() % thin == 0) test_case(of, grid, random, seen);
          if (first && failures()) return 1;
        }
    }
  std::printf(
      "runs: %lld in a block, %lld in clusters, %lld in grids; %lld with weights in shared memory, %lld with more "
      "tiles than teams\n",
      (long long)seen.of(0), (long long)seen.of(1), (long long)seen.of(2), (long long)seen.beyond,
      (long long)seen.rounds);
  std::printf(
      "largest errors, relative to a tensor's largest element or the terms of a sum: fp32 %.2g, bf16 %.2g, fp16 %.2g, "
      "tf32 %.2g\n",
      seen.worst[0], seen.worst[1], seen.worst[2], seen.worst[3]);
  for (const Cell cell : cells)  // a handful of cases, as with a planted bug, need not have it all
    for (int i = 0; thin <= 8 && !first && i < 4 * 3 * 2; ++i)
      expect(seen.runs[int(cell)][i / 6][i / 2 % 3][i % 2] > 0,
             std::string(prnn::name_of(cell)) + ", kind " + std::to_string(i / 6) + ", regime " +
                 std::to_string(i / 2 % 3) + ", pass " + std::to_string(i % 2) + " was never run");
  std::printf(failures() ? "FAILED: %d failures\n" : "all right\n", failures());
  return failures() ? 1 : 0;
}
