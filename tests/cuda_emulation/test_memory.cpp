// Soft stacks and lists on the emulated GPU, floats and doubles, against the equations; all gradients against those of
// the equations by the complex step, which is exact.
//
//     test_memory [thin [seed]]      one case in `thin`, other schedules
#include <complex>
#include <limits>

#include "memory_equations.h"
#include "memory_kernels.cuh"

namespace prnn::test {

namespace {

template <class E>
std::vector<E> nans(int64_t n) {
  return std::vector<E>(static_cast<std::size_t>(n), std::numeric_limits<E>::quiet_NaN());
}

// What is differentiated is the sum of all results, each times one of these.
double weight_of_output(std::size_t i) { return std::cos(double(i)); }
double weight_of_memory(std::size_t i) { return std::sin(double(i)); }

// Of what is in the memories before the first step.
enum class Filled { none, some, all };

struct Problem : MemoryProblem {
  Filled filled;
  int64_t first() const { return filled == Filled::all ? 0 : filled == Filled::some && list ? head() - 1 : head(); }
  int64_t last() const { return filled == Filled::all ? N : filled == Filled::some ? head() + 1 : head(); }
};

MemoryOperands<double> operands(const Problem& p) {
  MemoryOperands<double> found(p);
  for (int64_t i = 0; i < p.N; ++i)
    for (int64_t l = 0; (i < p.first() || i >= p.last()) && l < p.B * p.S; ++l) found.memory0[i * p.B * p.S + l] = -1;
  return found;
}

template <class To>
MemoryOperands<To> turned(const MemoryOperands<double>& from) {
  const auto turn = [](const std::vector<double>& x) { return std::vector<To>(x.begin(), x.end()); };
  MemoryOperands<To> to;
  to.x = turn(from.x), to.hh = turn(from.hh), to.read = turn(from.read), to.act = turn(from.act);
  to.h0 = turn(from.h0), to.memory0 = turn(from.memory0);
  return to;
}

template <class E>
struct Run {
  const Problem& p;
  MemoryOperands<E> given;
  cuda::MemoryPlan plan;
  uint64_t seed;
  std::vector<E> output, memory_n, actions, reads, saved, grad_x, grad_act, grad_memory0;

  Run(const Problem& p, int64_t blocks, uint64_t seed)
      : p(p), given(turned<E>(operands(p))), plan{0, blocks}, seed(seed) {}

  template <class Pass>
  void fill(Pass& pass) {
    pass.list = p.list, pass.doubles = sizeof(E) == 8, pass.rounds = false;
    pass.T = p.T, pass.B = p.B, pass.H = p.H, pass.S = p.S, pass.N = p.N, pass.K = p.K, pass.A = p.A;
    pass.head = p.head(), pass.empty = -1;
    pass.gates_x = given.x.data(), pass.weight_hh = p.recurrent ? given.hh.data() : nullptr;
    pass.weight_read = given.read.data(), pass.weight_act = given.act.data();
    pass.h0 = given.h0.data(), pass.memory0 = given.memory0.data();
    pass.first = p.first(), pass.last = p.last();
    plan.warps = cuda::memory_warps(pass);
  }

  template <class Pass, class Kernel>
  bool launch(const Pass& pass, Kernel kernel, bool backward) {
    const int bytes = int(cuda::MemoryShared(pass, backward).bytes(pass));
    expect(cuda::memory_refusal(pass, 227 << 10).empty(), p.name() + " is refused");
    const std::string error =
        emulation::launch({int(plan.blocks), 32 * plan.warps, 1, bytes, seed}, [&] { kernel(plan, pass); });
    expect(error.empty(), p.name() + (backward ? ", backward: " : ", forward: ") + error);
    return error.empty();
  }

  bool forward(bool save, bool rounds = false) {
    MemoryForward pass{};
    fill(pass);
    pass.rounds = rounds;
    output = nans<E>(p.T * p.B * p.H), memory_n = nans<E>(p.N * p.B * p.S);
    pass.output = output.data(), pass.memory_n = memory_n.data();
    if (save) {
      actions = nans<E>(p.T * (p.A + 1) * p.B * p.S), reads = nans<E>(p.T * p.B * p.S * p.K);
      saved = nans<E>(pass.saved_before(p.T));
      pass.actions = actions.data(), pass.reads = reads.data(), pass.saved = saved.data();
    }
    return launch(pass, cuda::memory_forward_kernel<E>, false);
  }

  bool backward() {
    MemoryBackward pass{};
    fill(pass);
    std::vector<E> of_output(output.size()), of_memory(memory_n.size());
    for (std::size_t i = 0; i < of_output.size(); ++i) of_output[i] = E(weight_of_output(i));
    for (std::size_t i = 0; i < of_memory.size(); ++i) of_memory[i] = E(weight_of_memory(i));
    grad_x = nans<E>(p.T * p.B * p.H), grad_act = nans<E>(p.T * p.B * (p.A + 1) * p.S);
    grad_memory0 = nans<E>(p.filled == Filled::all ? p.N * p.B * p.S : 0);
    pass.output = output.data(), pass.actions = actions.data(), pass.saved = saved.data();
    pass.grad_output = of_output.data(), pass.grad_memory_n = of_memory.data();
    pass.grad_gates_x = grad_x.data(), pass.grad_act = grad_act.data();
    pass.grad_memory0 = p.filled == Filled::all ? grad_memory0.data() : nullptr;
    return launch(pass, cuda::memory_backward_kernel<E>, true);
  }
};

template <class A, class B>
void close(const std::vector<A>& ours, const std::vector<B>& right, double tolerance, const std::string& what) {
  double worst = ours.size() == right.size() ? 0 : 1e9;
  for (std::size_t i = 0; i < std::min(ours.size(), right.size()); ++i) {
    const double distance = std::abs(double(ours[i]) - double(right[i])) / std::max(1.0, std::abs(double(right[i])));
    if (!(distance <= worst)) worst = distance == distance ? distance : 1e9;
  }
  expect(worst <= tolerance, what + " is off by " + std::to_string(worst));
}

using Complex = std::complex<double>;

// The gradients of the equations: of x, of the logits and of memory0.
struct Differentiated {
  explicit Differentiated(const Problem& p) {
    MemoryOperands<Complex> given = turned<Complex>(operands(p));
    std::vector<Complex> more(std::size_t(p.T * p.B * (p.A + 1) * p.S));
    const auto differentiate = [&](std::vector<Complex>& operand) {
      constexpr double kStep = 1e-30;
      std::vector<double> found;
      for (Complex& number : operand) {
        number += Complex(0, kStep);
        std::vector<Complex> output, memory;
        follow(p, given, more, output, memory);
        number = number.real();
        double sum = 0;
        for (std::size_t i = 0; i < output.size(); ++i) sum += weight_of_output(i) * output[i].imag();
        for (std::size_t i = 0; i < memory.size(); ++i) sum += weight_of_memory(i) * memory[i].imag();
        found.push_back(sum / kStep);
      }
      return found;
    };
    x = differentiate(given.x), act = differentiate(more);
    if (p.filled == Filled::all) memory0 = differentiate(given.memory0);
  }
  std::vector<double> x, act, memory0;
};

template <class E>
void test_case(const Problem& p, int64_t blocks, uint64_t seed, const Differentiated& right) {
  const double tolerance = sizeof(E) == 8 ? 1e-12 : 1e-5;
  const std::string name =
      p.name() + (sizeof(E) == 8 ? " doubles, " : " floats, ") + std::to_string(blocks) + " blocks";
  Run<E> run(p, blocks, seed);
  if (!run.forward(true) || !run.backward()) return;
  std::vector<double> output, memory;
  follow(p, operands(p), {}, output, memory);
  close(run.output, output, tolerance, name + ": output");
  close(run.memory_n, memory, tolerance, name + ": memory");
  // Also where no cell is saved: T = 1, and memories that nothing was written to.
  expect(std::all_of(run.reads.begin(), run.reads.end(), [](E x) { return std::isfinite(x); }),
         name + ": what was read is not saved");
  close(run.grad_x, right.x, 10 * tolerance, name + ": gradient of x");
  close(run.grad_act, right.act, 10 * tolerance, name + ": gradient of the logits");
  close(run.grad_memory0, right.memory0, 10 * tolerance, name + ": gradient of memory0");
  Run<E> again(p, 1, seed + 1);
  if (again.forward(false))
    expect(again.output == run.output && again.memory_n == run.memory_n, name + ": another schedule, other bits");
  if (!again.forward(true, true)) return;
  for (int64_t i = 0; i < p.T * (p.A + 1) * p.B * p.S; ++i)
    if (i / (p.B * p.S) % (p.A + 1) < p.A)
      expect(again.actions[i] == 0 || again.actions[i] == 1, name + ": an action is taken in part");
}

constexpr MemoryProblem kShapes[] = {
    {1, 1, 1, 1, 2, 1, 0, false, false, false},  {5, 2, 3, 2, 5, 2, 0, false, false, false},
    {4, 3, 9, 3, 9, 3, 0, false, false, false},  {2, 1, 70, 2, 6, 2, 0, false, false, false},
    {3, 1, 2, 18, 5, 1, 0, false, false, false}, {6, 2, 2, 2, 80, 2, 0, false, false, false},
};

void test_refusals() {
  Memory m{};
  m.H = 40, m.S = 10, m.N = 200, m.K = 2, m.A = 2;
  expect(cuda::memory_refusal(m, 99 << 10).empty(), "the paper's sizes are refused");
  m.N = 20000;
  expect(cuda::memory_refusal(m, 227 << 10) ==
             "40 units with 10 memories of 20000 cells need 3136 KiB of shared memory, a block of this GPU has 227 KiB",
         cuda::memory_refusal(m, 227 << 10));
  m.N = int64_t(1) << 40;
  expect(!cuda::memory_refusal(m, 227 << 10).empty(), "sizes beyond all bounds");
}

}  // namespace

}  // namespace prnn::test

int main(int argc, char** argv) {
  using namespace prnn::test;
  const uint64_t thin = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  const bool first = argc > 3;  // up to the first failure
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  test_refusals();
  uint64_t number = 0, runs = 0;
  for (const MemoryProblem& shape : kShapes)
    for (const int64_t A : {2, 3, 4})  // 4: a list
      for (const bool recurrent : {false, true})
        for (const Filled filled : {Filled::none, Filled::some, Filled::all}) {
          Problem p{shape, filled};
          p.A = std::min<int64_t>(A, 3), p.list = A == 4, p.recurrent = recurrent, p.fresh = filled == Filled::none;
          if (p.head() + p.K > p.N || Random(++number + seed * 31).bits() % thin != 0) continue;
          watchdog(120, p.name());
          const Differentiated right(p);
          test_case<float>(p, 1 + int64_t(number) % p.B, seed + number, right);
          test_case<double>(p, p.B, seed + number, right);
          ++runs;
          if (first && failures()) return 1;
        }
  std::printf("%llu networks\n", (unsigned long long)runs);
  std::printf(failures() ? "FAILED: %d failures\n" : "all right\n", failures());
  return failures() ? 1 : 0;
}
