#include "trials.h"

#include <algorithm>

namespace prnn::cpu {

namespace {

// What trials of slower levels may cost, as a share of all calls' time; and the calls between two, at least and at
// most.
constexpr double kCost = 0.01;
constexpr double kRest = 16, kLongRest = 5000;
// How much of a measurement enters the mean, and the multiple of the mean beyond which it says nothing: the thread was
// interrupted.
constexpr double kWeight = 0.25, kOutlier = 2.0;

}  // namespace

int Trials::choose(uint64_t key, int levels, int guess) {
  const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  levels = std::min(levels, kLevels), guess = std::clamp(guess, 0, levels - 1);
  if (!lock) return guess;
  Kind& kind = kind_of(key);
  if (kind.key != key) kind = {key, guess, {}};
  const Level& best = kind.levels[kind.best];
  if (!best.known()) return kind.best;
  for (const int level : {kind.best - 1, kind.best + 1}) {
    if (level < 0 || level >= levels) continue;
    const Level& other = kind.levels[level];
    if (!other.known()) return level;
    // The slower it was, the more seldom.
    const double rest = std::clamp((other.seconds / best.seconds - 1) / kCost, kRest, kLongRest);
    if (double(other.idle) >= rest) return level;
  }
  return kind.best;
}

void Trials::record(uint64_t key, int level, double seconds) {
  const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  Kind& kind = kind_of(key);
  if (!lock || kind.key != key) return;
  for (Level& each : kind.levels) ++each.idle;
  Level& tried = kind.levels[level];
  tried.idle = 0;
  const int64_t visit = tried.visits++;
  if (visit < kUnmeasured) return;
  if (visit == kUnmeasured)
    tried.seconds = seconds;
  else if (visit == kUnmeasured + 1 || (level != kind.best && seconds < tried.seconds))
    tried.seconds = std::min(seconds, tried.seconds);  // what is seldom tried is taken at its word
  else
    tried.seconds += kWeight * (std::min(seconds, kOutlier * tried.seconds) - tried.seconds);
  for (int other = 0; other < kLevels; ++other) {
    const Level& each = kind.levels[other];
    if (each.known() && each.seconds < kind.levels[kind.best].seconds) kind.best = other;
  }
}

}  // namespace prnn::cpu
