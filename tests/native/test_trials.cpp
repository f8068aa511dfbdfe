// The number of threads by trial: the fastest is found, found again when the machine changes, and trials cost little.
#include <algorithm>
#include <memory>
#include <vector>

#include "tests.h"
#include "trials.h"

namespace prnn::test {

namespace {

using cpu::Trials;
using Seconds = std::vector<double>;  // of a call, by level

// Makes `calls` calls of a kind; returns the seconds of all of them.
double make_calls(Trials& trials, uint64_t key, const Seconds& seconds, int calls, int guess) {
  double sum = 0;
  for (int call = 0; call < calls; ++call) {
    const int level = trials.choose(key, int(seconds.size()), guess);
    expect(level >= 0 && level < int(seconds.size()), "level " + std::to_string(level));
    trials.record(key, level, seconds[size_t(level)]);
    sum += seconds[size_t(level)];
  }
  return sum;
}

void expect_best(Trials& trials, uint64_t key, const Seconds& seconds, const std::string& who) {
  constexpr int kCalls = 2000;
  const double best = *std::min_element(seconds.begin(), seconds.end());
  const double share = make_calls(trials, key, seconds, kCalls, 0) / (kCalls * best);
  expect(share < 1.05, who + ": all calls take " + std::to_string(share) + " times the fastest choice");
}

}  // namespace

void test_trials() {
  watchdog(60, "trials");
  const auto made = std::make_unique<Trials>();
  Trials& trials = *made;
  uint64_t key = 1;
  for (const Seconds& seconds : {Seconds{1, 3}, {3, 1}, {1, 1.04}, {4, 2, 1, 3}, {1, 2, 4, 8, 16}})
    for (const int guess : {0, int(seconds.size()) - 1}) {
      make_calls(trials, ++key, seconds, 20, guess);  // what finding out takes
      expect_best(trials, key, seconds, "kind " + std::to_string(key));
    }
  // The machine changes.
  make_calls(trials, 100, Seconds{1, 3}, 500, 0);
  make_calls(trials, 100, Seconds{5, 3}, 30, 0);
  expect_best(trials, 100, Seconds{5, 3}, "two threads have become slower");
  make_calls(trials, 100, Seconds{1, 3}, 200, 0);
  expect_best(trials, 100, Seconds{1, 3}, "and faster again");
  expect(trials.choose(103, 9, 8) == 8, "one thread of 256 is a choice");
  // One call in many is interrupted.
  for (int i = 0; i < 50; ++i) {
    make_calls(trials, 101, Seconds{1, 1.2}, 20, 0);
    trials.record(101, 0, 1000);
    const double share = make_calls(trials, 101, Seconds{1, 1.2}, 40, 0) / 40;
    expect(share < 1.1, "after an interruption calls take " + std::to_string(share) + " times as long");
  }
  // The first call that is measured is interrupted.
  trials.record(102, trials.choose(102, 2, 0), 1);
  trials.record(102, trials.choose(102, 2, 0), 200);
  make_calls(trials, 102, Seconds{1, 1.5}, 20, 0);
  expect_best(trials, 102, Seconds{1, 1.5}, "after an interruption at the beginning");
  // Kinds that share a place in the table, and a record of one that has lost its place.
  expect(trials.choose(1007, 2, 1) == 1 && trials.choose(1007 + 256, 2, 0) == 0, "the guess comes first");
  for (int i = 0; i < 3; ++i) trials.record(1007, 1, 1.0), trials.record(1007, 0, 2.0);
  expect(trials.choose(1007 + 256, 2, 0) == 0, "a record of another kind");
  std::printf("trials: the fastest of up to 5 choices found, at a cost below 5 %%\n");
}

}  // namespace prnn::test
