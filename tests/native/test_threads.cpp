// Teams: whatever a parallel region does with its ranges, the layer comes to its end, with the same bits.
#include <sys/wait.h>

#include <algorithm>
#include <stdexcept>

#include "kernels.h"
#include "parallels.h"
#include "run.h"
#include "scratch.h"
#include "tests.h"

namespace prnn::test {

namespace {

constexpr unsigned kSeconds = 120;  // for some milliseconds of work, on a machine that may be busy

// Both passes of a layer, of the two directions of one, or of a stack's layers.
class Layers {
 public:
  explicit Layers(const std::vector<Case>& cases, bool stack = false) : stack_(stack) {
    for (const Case& of : cases) problems_.push_back(std::make_unique<Problem>(of));
    expected_ = run(1, nullptr, true);
    for (size_t i = 0; i < cases.size() && !stack; ++i) {
      problems_[i]->check(expected_[2 * i], 1e-4, "alone");
      problems_[i]->check(expected_[2 * i + 1], 1e-4, "alone");
    }
  }

  void check(int64_t threads, const Parallel& parallel, const std::string& who) const {
    const auto results = run(threads, parallel, false);
    for (size_t i = 0; i < results.size(); ++i)
      expect_same(expected_[i], results[i], problems_[i / 2]->of.name() + ", " + who);
  }

  // The results of problem 0 forward, backward, of problem 1 forward ... `alone`: each layer in a call of its own.
  std::vector<std::vector<Array>> run(int64_t threads, const Parallel& parallel, bool alone) const {
    const size_t count = problems_.size();
    std::vector<Forward> forward(count);
    std::vector<Backward> backward(count);
    std::vector<std::vector<Array>> results;
    for (size_t i = 0; i < count; ++i) {
      results.push_back(problems_[i]->forward_results(forward[i]));
      results.push_back(problems_[i]->backward_results(backward[i]));
    }
    if (stack_) {
      for (size_t i = 0; i < count; ++i) {
        const auto constant = [](const Sequence<void>& from) {
          return Sequence<const void>{from.data, from.step, from.row};
        };
        backward[i].output = constant(forward[i].output), backward[i].saved = forward[i].saved;
        if (i) backward[i].x = forward[i].x = constant(forward[i - 1].output);
        if (i + 1 < count) backward[i].grad_output = constant(backward[i + 1].grad_x);
      }
      std::reverse(backward.begin(), backward.end());
    }
    const int all = int(count);
    for (int i = 0; alone && i < all; ++i) cpu::forward(&forward[size_t(i)], 1, threads, parallel);
    for (int i = 0; alone && i < all; ++i) cpu::backward(&backward[size_t(i)], 1, threads, parallel);
    if (alone) return results;
    (stack_ ? cpu::forward_stack : cpu::forward)(forward.data(), all, threads, parallel);
    (stack_ ? cpu::backward_stack : cpu::backward)(backward.data(), all, threads, parallel);
    return results;
  }

  const Problem& first() const { return *problems_[0]; }
  const std::vector<std::vector<Array>>& expected() const { return expected_; }

 private:
  const bool stack_;
  std::vector<std::unique_ptr<Problem>> problems_;
  std::vector<std::vector<Array>> expected_;
};

// Large enough for threads to pay: over the batch, its backward pass in parts, over hidden units, two directions at
// once, and the layers of a stack, whose chunks of the backward pass begin where no piece does.
std::vector<Layers> all_layers() {
  std::vector<Layers> all;
  Case batch{Cell::gru, Dtype::float32, 48, 24, 6, 48};
  batch.lengths = batch.resets = true;
  all.emplace_back(std::vector<Case>{batch});
  Case hidden{Cell::lstm, Dtype::float32, 16, 1, 5, 200};
  all.emplace_back(std::vector<Case>{hidden});
  Case both{Cell::rnn_tanh, Dtype::float32, 30, 4, 6, 160};
  both.resets = true;
  all.emplace_back(std::vector<Case>{both});
  for (const Case& of : {batch, hidden}) {
    Case there = of, back = of;
    back.reverse = true, there.layout = back.layout = Layout::halves;
    all.emplace_back(std::vector<Case>{there, back});
  }
  Case below{Cell::lstm, Dtype::float32, 70, 15, 5, 24};
  below.lengths = below.resets = true, below.layout = Layout::gaps;
  Case above = below;
  above.I = below.H, above.gradients &= ~unsigned(kGradWeightHH);
  all.emplace_back(std::vector<Case>{below, above, above}, true);
  Case narrow{Cell::rnn_tanh, Dtype::bfloat16, 40, 2, 1, 2};
  narrow.reverse = true, narrow.gradients &= ~unsigned(kGradX);
  Case second = narrow;
  second.I = 2, second.gradients = kAll;
  all.emplace_back(std::vector<Case>{narrow, second}, true);
  return all;
}

void test_kinds(const std::vector<Layers>& all, const Effort& effort) {
  int64_t calls = 0, number = 0;
  for (const Layers& layers : all)
    for (uint64_t seed = 1; seed <= uint64_t(effort.thin > 2 ? 1 : 3); ++seed)
      for (const Kind& kind : kinds(seed))
        for (const int64_t threads : {2, 3, 5}) {
          if (effort.thin > 10 && ++number % 3 != 0) continue;
          const std::string who = std::string(kind.name) + ", " + std::to_string(threads) + " threads";
          watchdog(kSeconds, layers.first().of.name() + ", " + who);
          int64_t asked = 0;
          layers.check(
              threads, [&](int64_t n, const Body& body) { asked += n == threads, kind.parallel(n, body); }, who);
          expect(asked > 0, layers.first().of.name() + " is too small to be shared out: this tests nothing");
          ++calls;
        }
  std::printf("threads: %lld calls of each pass by %d kinds of parallel region\n", (long long)calls,
              int(kinds(1).size()));
}

// Who comes when the work is done must not touch it: his memory may be somebody else's by then.
void test_late_comers(const std::vector<Layers>& all) {
  watchdog(kSeconds, "ranges that begin when the work is done");
  for (const Layers& layers : all) {
    const Problem& problem = layers.first();
    Forward pass{};
    std::vector<Array> results = problem.forward_results(pass);
    cpu::forward(&pass, 1, 4, [&](int64_t n, const Body& body) {
      body(0, 1);
      expect_same(layers.expected()[0], results, problem.of.name() + ", after the first range");
      for (Array& array : results) array.buffer.set(0, 7.0);
      const std::vector<Array> scribbled = results;
      for (int64_t i = 1; i < n; ++i) body(i, i + 1);
      expect_same(scribbled, results, problem.of.name() + ", a late comer");
    });
  }
}

// By trial, too: the choice is made by several callers at once.
void test_at_once(const std::vector<Layers>& all, const Effort& effort) {
  cpu::chooses_by_trial = true;
  for (int64_t round = 0; round < (effort.thin > 2 ? 2 : 6); ++round) {
    watchdog(kSeconds, "two calls at once");
    const auto caller = [&](size_t offset) {
      for (size_t i = 0; i < all.size(); ++i)
        for (const Kind& kind : {kinds(uint64_t(round))[0], kinds(uint64_t(round))[1]})
          all[(i + offset) % all.size()].check(3, kind.parallel, std::string("two calls at once, ") + kind.name);
    };
    std::thread one(caller, 0), two(caller, 2);
    one.join(), two.join();
  }
  cpu::chooses_by_trial = false;
}

void test_nested(const std::vector<Layers>& all) {
  const auto ways = kinds(3);
  for (const size_t inner : {size_t{0}, size_t{2}, size_t{3}}) {
    watchdog(kSeconds, std::string("calls inside a parallel region, ") + ways[inner].name);
    ways[0].parallel(3, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        all[size_t(i) % all.size()].check(3, ways[inner].parallel, std::string("nested, ") + ways[inner].name);
    });
  }
}

// The threads a pool had are not there in a forked child: it must not ask for them, nor wait.
void test_fork(const std::vector<Layers>& all) {
  watchdog(kSeconds, "a forked child");
  all[0].check(3, kinds(1)[0].parallel, "before the fork");
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    watchdog(kSeconds, "inside a forked child");
    const int before = failures();
    for (const Layers& layers : all)
      layers.check(3, [](int64_t, const Body&) { fail("a forked child asks for its parent's threads"); }, "forked");
    std::fflush(stdout);
    _exit(failures() == before ? 0 : 1);
  }
  int status = 0;
  expect(child > 0 && waitpid(child, &status, 0) == child && status == 0, "the forked child failed");
}

// More threads than the plan has places for, where those it has meet once a step. The sequence is long, or a team would
// not wait until all of them have come in.
void test_spare_threads() {
  constexpr int64_t kThreads = 7;
  watchdog(kSeconds, "more threads than places");
  const Case of{Cell::rnn_tanh, Dtype::float32, 6000, 2, 3, 100};
  const Layers layers({of});
  const cpu::Plan plan = cpu::make_plan(layers.first().layer, cpu::best_kernels(Dtype::float32).lanes, kThreads, true);
  expect(plan.hidden_groups > 1 && plan.batch_groups * plan.hidden_groups < kThreads,
         "no thread is spare: choose an H");
  for (int64_t round = 0; round < 2; ++round) layers.check(kThreads, kinds(1)[1].parallel, "spare threads");
}

// In the order of the ranges, whatever the order of arrival, also if some never arrive or are empty.
void test_ranks() {
  const std::vector<std::vector<std::pair<int64_t, int64_t>>> all = {
      {{2, 3}, {0, 1}, {1, 2}}, {{3, 4}, {1, 2}}, {{4, 6}, {0, 4}}, {{1, 1}, {1, 2}, {0, 1}}};
  for (const auto& ranges : all) {
    cpu::Team team(6, 1);
    std::vector<std::pair<std::pair<int64_t, int64_t>, int64_t>> joined;
    for (const auto& [begin, end] : ranges) joined.push_back({{begin, end}, team.join(begin, end)});
    expect(team.close(1.0) == int64_t(ranges.size()), "a team has the wrong size");
    expect(team.join(5, 6) == -1, "a closed team is joined");
    team.open();
    std::sort(joined.begin(), joined.end());
    for (size_t i = 0; i < joined.size(); ++i)
      expect(team.rank(joined[i].second) == int64_t(i), "ranks are not in the order of the ranges");
  }
}

// Memory that is not there: an error that says so, on whichever thread it is raised.
void test_no_memory() {
  watchdog(kSeconds, "no memory");
  try {
    const cpu::Scratch scratch(int64_t{1} << 60);
    fail("2^60 bytes of scratch memory");
  } catch (const std::runtime_error& error) {
    const std::string said = error.what();
    expect(said.find("not enough memory: you tried to allocate 11529215046068") != std::string::npos, said);
  }
}

}  // namespace

void test_threads(const Effort& effort) {
  watchdog(kSeconds, "the layers of the threads' tests, alone");
  const std::vector<Layers> all = all_layers();
  expect(cpu::parts_of(all[0].first().layer) > 1, "no backward pass is in parts");
  test_ranks();
  test_kinds(all, effort);
  test_late_comers(all);
  test_at_once(all, effort);
  test_nested(all);
  test_fork(all);
  test_no_memory();
  if (effort.thin < 10) test_spare_threads();
}

}  // namespace prnn::test
