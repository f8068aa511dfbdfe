// Soft stacks and lists: doubles against the equations, written down once more, and against differences; floats against
// doubles. Buffers are as large as they must be, and full of NaN where something is to be written.
#include <cmath>
#include <limits>
#include <vector>

#include "memory_driver.h"
#include "memory_equations.h"
#include "parallels.h"
#include "tests.h"

namespace prnn::test {

namespace {

using Problem = MemoryProblem;

template <class E>
struct Case : MemoryOperands<E> {
  using MemoryOperands<E>::x, MemoryOperands<E>::hh, MemoryOperands<E>::read, MemoryOperands<E>::act,
      MemoryOperands<E>::h0, MemoryOperands<E>::memory0;
  Problem p;
  std::vector<E> output, memory_n, actions, reads, saved;

  static std::vector<E> nans(int64_t n) {
    return std::vector<E>(static_cast<std::size_t>(n), std::numeric_limits<E>::quiet_NaN());
  }

  explicit Case(const Problem& p) : MemoryOperands<E>(p), p(p) {}

  template <class Pass>
  void fill(Pass& pass) const {
    pass.list = p.list, pass.doubles = sizeof(E) == 8, pass.rounds = false;
    pass.T = p.T, pass.B = p.B, pass.H = p.H, pass.S = p.S, pass.N = p.N, pass.K = p.K, pass.A = p.A;
    pass.head = p.head(), pass.empty = -1;
    pass.gates_x = x.data(), pass.weight_hh = p.recurrent ? hh.data() : nullptr, pass.weight_read = read.data();
    pass.weight_act = act.data(), pass.h0 = h0.data(), pass.memory0 = memory0.data();
    pass.first = 0, pass.last = p.N;
    if (p.fresh) cpu::find_filled(pass);
  }

  void forward(const Parallel& parallel, bool save) {
    MemoryForward pass{};
    fill(pass);
    output = nans(p.T * p.B * p.H), memory_n = nans(p.N * p.B * p.S);
    pass.output = output.data(), pass.memory_n = memory_n.data();
    if (save) {
      actions = nans(p.T * (p.A + 1) * p.B * p.S), reads = nans(p.T * p.B * p.S * p.K);
      saved = nans(pass.saved_before(p.T));
      pass.actions = actions.data(), pass.reads = reads.data(), pass.saved = saved.data();
    }
    cpu::memory_forward(pass, parallel);
  }

  // A scalar that everything has a part in: what is differentiated.
  double value() {
    forward([](int64_t n, const Body& body) { body(0, n); }, false);
    double sum = 0;
    for (std::size_t i = 0; i < output.size(); ++i) sum += std::cos(double(i)) * double(output[i]);
    for (std::size_t i = 0; i < memory_n.size(); ++i) sum += std::sin(double(i)) * double(memory_n[i]);
    return sum;
  }

  struct Gradients {
    std::vector<E> x, act, memory0;
  };

  Gradients backward(const Parallel& parallel) {
    forward(parallel, true);
    MemoryBackward pass{};
    fill(pass);
    std::vector<E> of_output(output.size()), of_memory(memory_n.size());
    for (std::size_t i = 0; i < of_output.size(); ++i) of_output[i] = E(std::cos(double(i)));
    for (std::size_t i = 0; i < of_memory.size(); ++i) of_memory[i] = E(std::sin(double(i)));
    Gradients found{nans(p.T * p.B * p.H), nans(p.T * p.B * (p.A + 1) * p.S), nans(p.fresh ? 0 : p.N * p.B * p.S)};
    pass.output = output.data(), pass.actions = actions.data(), pass.saved = saved.data();
    pass.grad_output = of_output.data(), pass.grad_memory_n = of_memory.data();
    pass.grad_gates_x = found.x.data(), pass.grad_act = found.act.data();
    pass.grad_memory0 = p.fresh ? nullptr : found.memory0.data();
    cpu::memory_backward(pass, parallel);
    return found;
  }
};

template <class A, class B>
void close(const std::vector<A>& ours, const std::vector<B>& right, double tolerance, const std::string& what) {
  double worst = ours.size() == right.size() ? 0 : 1e9;
  for (std::size_t i = 0; i < std::min(ours.size(), right.size()); ++i) {
    const double distance = std::abs(double(ours[i]) - double(right[i])) / std::max(1.0, std::abs(double(right[i])));
    worst = distance <= worst ? worst : distance;  // a NaN is worse than anything
    if (distance != distance) worst = 1e9;
  }
  expect(worst <= tolerance, what + ": off by " + std::to_string(worst));
}

void differences(Case<double> c, const Case<double>::Gradients& found) {
  Random random(11);
  const auto check = [&](std::vector<double>& operand, const std::vector<double>& gradient, const char* what) {
    for (int i = 0; i < 12; ++i) {
      const std::size_t at = std::size_t(random.integer(0, int64_t(operand.size()) - 1));
      const double kept = operand[at], step = 1e-5;
      operand[at] = kept + step;
      const double above = c.value();
      operand[at] = kept - step;
      const double below = c.value();
      operand[at] = kept;
      close(std::vector<double>{gradient[at]}, std::vector<double>{(above - below) / (2 * step)}, 1e-5,
            c.p.name() + " gradient of " + what);
    }
  };
  check(c.x, found.x, "x");
  if (!c.p.fresh) check(c.memory0, found.memory0, "memory0");
  // That of weight_act h, summed as the weights' gradient is.
  std::vector<double> of_act(c.act.size(), 0);
  const int64_t rows = (c.p.A + 1) * c.p.S;
  for (int64_t n = 0; n < c.p.T * c.p.B; ++n)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < c.p.H; ++j) of_act[r * c.p.H + j] += found.act[n * rows + r] * c.output[n * c.p.H + j];
  check(c.act, of_act, "weight_act");
}

}  // namespace

void test_memory(const Effort& effort) {
  const std::vector<Kind> ways = kinds(3);
  int64_t number = 0;
  for (const int64_t A : {2, 3, 4})  // 4: a list
    for (const bool recurrent : {false, true})
      for (const bool fresh : {false, true})
        for (const Problem& shape :
             {Problem{1, 1, 1, 1, 2, 1, 0, false, false, false}, Problem{5, 2, 3, 2, 5, 2, 0, false, false, false},
              Problem{9, 19, 17, 3, 9, 3, 0, false, false, false},
              Problem{14, 9, 40, 10, 40, 2, 0, false, false, false}}) {
          if (number++ % std::min<int64_t>(effort.thin, 5) != 0) continue;
          Problem p = shape;
          p.A = std::min<int64_t>(A, 3), p.list = A == 4, p.recurrent = recurrent, p.fresh = fresh;
          watchdog(120, p.name());
          const Parallel& parallel = ways[std::size_t(number) % ways.size()].parallel;
          Case<double> doubles(p);
          Case<float> floats(p);
          const auto right = doubles.backward(parallel);
          const auto near = floats.backward(parallel);
          std::vector<double> output, memory;
          follow(p, doubles, {}, output, memory);
          close(doubles.output, output, 1e-12, p.name() + " output");
          close(doubles.memory_n, memory, 1e-12, p.name() + " memory");
          differences(doubles, right);
          close(floats.output, doubles.output, 1e-5, p.name() + " float output");
          close(floats.memory_n, doubles.memory_n, 1e-5, p.name() + " float memory");
          close(near.x, right.x, 1e-4, p.name() + " float gradient of x");
          close(near.act, right.act, 1e-4, p.name() + " float gradient of the actions");
          close(near.memory0, right.memory0, 1e-4, p.name() + " float gradient of memory0");
        }
}

}  // namespace prnn::test
