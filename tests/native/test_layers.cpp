// Every cell, dtype, odd shape and option: results and gradients against the reference, and the same bits however the
// layer is split.
#include "force.h"
#include "parallels.h"
#include "tests.h"

namespace prnn::test {

namespace {

struct Shape {
  int64_t T, B, I, H;
};

// Odd sizes, even ones (pairs of bfloat16 need them), several chunks, lanes and one more, one sample and many, nothing,
// panels of 4 KiB and multiples of it.
constexpr Shape kShapes[] = {{1, 1, 1, 1},   {1, 3, 2, 17},  {5, 1, 3, 3},    {6, 4, 7, 7},    {3, 7, 5, 100},
                             {4, 9, 6, 131}, {9, 33, 4, 40}, {70, 2, 1, 20},  {300, 3, 2, 5},  {2, 300, 3, 9},
                             {7, 5, 2, 2},   {3, 2, 4, 64},  {5, 13, 18, 16}, {11, 1, 34, 98}, {0, 3, 2, 5},
                             {4, 0, 2, 6},   {130, 4, 2, 6}, {3, 2, 128, 256}};
// Large enough for the driver to share them out: over hidden units, over the batch, both.
constexpr Shape kLarge[] = {{12, 1, 5, 320}, {20, 24, 6, 48}, {24, 2, 8, 160}, {60, 19, 2, 24}};

std::vector<Case> variations(Case plain) {
  std::vector<Case> all;
  const auto add = [&](auto change) {
    Case changed = plain;
    change(changed);
    changed.seed = plain.seed * 101 + all.size();
    all.push_back(changed);
  };
  add([](Case&) {});
  add([](Case& c) { c.lengths = true; });
  add([](Case& c) { c.resets = true; });
  add([](Case& c) { c.reverse = true, c.layout = Layout::halves; });
  add([](Case& c) { c.lengths = c.resets = true, c.layout = Layout::batch_first; });
  add([](Case& c) { c.lengths = c.resets = c.reverse = true, c.layout = Layout::gaps; });
  add([](Case& c) { c.reverse = c.resets = true, c.biases = false; });
  add([](Case& c) { c.lengths = c.reverse = true, c.layout = Layout::halves, c.saves = false; });
  add([](Case& c) { c.input = false, c.lengths = true, c.layout = Layout::batch_first; });
  add([](Case& c) { c.input = c.biases = false, c.reverse = c.resets = true, c.layout = Layout::gaps; });
  add([](Case& c) { c.input = false, c.gradients = kAll & ~kGradX; });
  // Gradients that are not given, and some that nobody wants.
  add([](Case& c) { c.lengths = true, c.gradients = kAll & ~kGradOutput; });
  add([](Case& c) { c.resets = true, c.gradients = kAll & ~(kGradHN | kGradCN), c.layout = Layout::halves; });
  add([](Case& c) { c.lengths = c.reverse = true, c.gradients = kAll & ~(kGradX | kGradH0 | kGradBiasIH); });
  add([](Case& c) { c.gradients = kGradOutput | kGradX; });
  add([](Case& c) { c.lengths = true, c.gradients = kGradCN | kGradWeightIH | kGradC0 | kGradBiasHH; });
  add([](Case& c) { c.gradients = kGradHN | kGradWeightHH | kGradH0, c.resets = true; });
  return all;
}

// The shares of the work the tests have seen, so that none is missing without notice.
struct Seen {
  int64_t driver_batch = 0, driver_hidden = 0, parts = 0, forced = 0, cases = 0;
  double worst[2][2] = {};  // of dtype, of pass
};

// fp32: some hundreds of roundings, measured: 2e-6. bf16: h has 8 bits, and the gates' gradients where pairs are
// multiplied; measured: 0.4 % without pairs, 0.9 % with them.
double tolerance(const Case& of) { return of.dtype == Dtype::float32 ? 1e-5 : 1.5e-2; }

template <class Pass>
constexpr bool kBackward = std::is_same_v<Pass, Backward>;

std::vector<Array> results(Problem& problem, Forward& pass) { return problem.forward_results(pass); }
std::vector<Array> results(Problem& problem, Backward& pass) { return problem.backward_results(pass); }
void run(const Forward& pass, int64_t threads, const Parallel& by) { cpu::forward(&pass, 1, threads, by); }
void run(const Backward& pass, int64_t threads, const Parallel& by) { cpu::backward(&pass, 1, threads, by); }

struct Split {
  int64_t batch, hidden;
};

// Two of the splits over the batch, over hidden units and over both.
std::vector<Split> splits(const Case& of) {
  const int64_t lanes = cpu::best_kernels(Dtype::float32).lanes, vectors = (of.H + lanes - 1) / lanes;
  std::vector<Split> all;
  for (const int64_t members : {2, 3, 5})
    for (int64_t batch = 1; batch <= std::min(members, of.B); ++batch)
      all.push_back({batch, std::min(members / batch, vectors)});
  if (all.size() <= 2) return all;
  const size_t one = of.seed % all.size(), other = (one + 1 + of.seed / 7 % (all.size() - 1)) % all.size();
  return {all[one], all[other]};
}

template <class Pass>
void test_pass(Problem& problem, Seen& seen, uint64_t seed) {
  Pass pass{};
  const std::vector<Array> alone = results(problem, pass);
  run(pass, 1, nullptr);
  const char* which = kBackward<Pass> ? "backward" : "forward";
  const double error = problem.check(alone, tolerance(problem.of), which);
  double& worst = seen.worst[problem.of.dtype == Dtype::bfloat16][kBackward<Pass>];
  worst = std::max(worst, error);
  const int64_t lanes = cpu::best_kernels(Dtype::float32).lanes;
  const auto ways = kinds(seed);
  for (const int64_t threads : {2, 3, 5}) {
    Pass again{};
    const std::vector<Array> shared = results(problem, again);
    bool asked = false;
    const Parallel& by = ways[size_t(threads % 2)].parallel;
    run(again, threads, [&](int64_t n, const Body& body) { asked = n > 1, by(n, body); });
    expect_same(alone, shared, problem.of.name() + ", " + which + " by " + std::to_string(threads) + " threads");
    const cpu::Plan plan = cpu::make_plan(again, lanes, threads, kBackward<Pass>);
    seen.driver_batch += asked && plan.batch_groups > 1, seen.driver_hidden += asked && plan.hidden_groups > 1;
  }
  seen.parts += kBackward<Pass> && cpu::parts_of(pass) > 1;
  uint64_t next = seed;
  for (const Split& split : splits(problem.of)) {
    cpu::Plan plan{split.batch, split.hidden, 0, 0};
    // The forward pass has the same bits whatever the chunk; the backward pass sums a chunk at a time.
    const int64_t chunks[] = {0, 1, 3};  // 0: the driver's
    if (!kBackward<Pass>) plan.chunk = chunks[next++ % 3];
    const std::string who = std::string(which) + " split " + std::to_string(split.batch) + " x " +
                            std::to_string(split.hidden) + ", chunk " + std::to_string(plan.chunk);
    Pass again{};
    const std::vector<Array> shared = results(problem, again);
    force(again, plan);
    expect_same(alone, shared, problem.of.name() + ", " + who);
    ++seen.forced;
    if (!kBackward<Pass>) continue;
    plan.chunk = chunks[1 + next++ % 2];
    Pass chunked{};
    const std::vector<Array> chunks_of = results(problem, chunked);
    force(chunked, plan);
    problem.check(chunks_of, tolerance(problem.of), std::string(who) + " but chunk " + std::to_string(plan.chunk));
  }
}

void test_case(const Case& of, Seen& seen) {
  watchdog(120, of.name());
  Problem problem(of);
  test_pass<Forward>(problem, seen, of.seed);
  if (of.saves) test_pass<Backward>(problem, seen, of.seed);
  ++seen.cases;
}

}  // namespace

void test_layers(const Effort& effort) {
  Seen seen;
  uint64_t number = 0;
  for (const Cell cell : all_cells())
    for (const Dtype dtype : {Dtype::float32, Dtype::bfloat16})
      for (const Shape& shape : kShapes)
        for (const Case& of : variations({cell, dtype, shape.T, shape.B, shape.I, shape.H})) {
          // A stride through a hashed order: what is left out follows no pattern.
          Case seeded = of;
          seeded.seed = of.seed + ++number * 977;
          if (Random(number).bits() % uint64_t(effort.thin) == 0) test_case(seeded, seen);
        }
  // Sanitizers and emulators would spend half their time here: there each cell takes one of the shapes.
  const Shape* only = effort.thin < 20 ? nullptr : kLarge;
  for (const Cell cell : {Cell::rnn_tanh, Cell::lstm, Cell::gru}) {
    for (const Dtype dtype : {Dtype::float32, Dtype::bfloat16})
      for (const Shape& shape : kLarge) {
        if (only && only != &shape) continue;
        Case of{cell, dtype, shape.T, shape.B, shape.I, shape.H};
        of.lengths = of.resets = dtype == Dtype::float32 && shape.B > 1, of.reverse = shape.H == 160;
        if (effort.thin == 1 || dtype == (cell == Cell::gru ? Dtype::bfloat16 : Dtype::float32)) test_case(of, seen);
      }
    if (only) ++only;
  }
  expect(seen.driver_batch > 0, "no case was split over the batch by the driver");
  expect(seen.driver_hidden > 0, "no case was split over hidden units by the driver");
  expect(only || seen.parts > 0, "no backward pass was in parts");
  std::printf("layers: %lld cases; the driver split %lld over the batch, %lld over hidden units; %lld forced splits\n",
              (long long)seen.cases, (long long)seen.driver_batch, (long long)seen.driver_hidden,
              (long long)seen.forced);
  std::printf(
      "layers: largest errors, relative to a tensor's largest element: fp32 %.2g forward %.2g backward, "
      "bf16 %.2g forward %.2g backward\n",
      seen.worst[0][0], seen.worst[0][1], seen.worst[1][0], seen.worst[1][1]);
}

// The reference itself: its gradients against differences of its forward pass.
void test_reference() {
  watchdog(60, "the reference's own gradients");
  double worst = 0;
  uint64_t seed = 1;
  for (const Cell cell : all_cells())
    for (const bool reverse : {false, true})
      for (const bool input : {true, false}) {
        Case of{cell, Dtype::float32, 5, 3, 2, 3};
        of.lengths = of.resets = true, of.reverse = reverse, of.input = input, of.seed = ++seed;
        Values values(of);
        Truth truth;
        Reference(of, values, false).forward(truth);
        Reference(of, values, false).backward(truth);
        const auto loss = [&] {
          Truth now;
          Reference(of, values, false).forward(now);
          double sum = 0;
          for (size_t i = 0; i < now.output.size(); ++i)
            if (values.grad_output[i] == values.grad_output[i]) sum += now.output[i] * values.grad_output[i];
          for (size_t i = 0; i < now.h_n.size(); ++i) sum += now.h_n[i] * values.grad_h_n[i];
          for (size_t i = 0; i < now.c_n.size(); ++i) sum += now.c_n[i] * values.grad_c_n[i];
          return sum;
        };
        const std::pair<std::vector<double>*, const std::vector<double>*> pairs[] = {
            {&values.x, &truth.grad_x},
            {&values.weight_ih, &truth.grad_weight_ih},
            {&values.weight_hh, &truth.grad_weight_hh},
            {&values.bias_ih, &truth.grad_bias_ih},
            {&values.bias_hh, &truth.grad_bias_hh},
            {&values.h0, &truth.grad_h0},
            {&values.c0, &truth.grad_c0}};
        for (const auto& [operand, gradient] : pairs)
          for (size_t i = 0; i < operand->size(); ++i) {
            const double before = (*operand)[i], step = 1e-5;
            if (before != before) continue;
            (*operand)[i] = before + step;
            const double above = loss();
            (*operand)[i] = before - step;
            const double below = loss();
            (*operand)[i] = before;
            worst = std::max(worst, __builtin_fabs((above - below) / (2 * step) - (*gradient)[i]));
          }
      }
  expect(worst < 1e-7, "the reference's gradients are off by " + std::to_string(worst));
  std::printf("reference: its gradients and differences of its results agree to %.1g\n", worst);
}

}  // namespace prnn::test
