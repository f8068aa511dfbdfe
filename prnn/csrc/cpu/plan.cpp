#include "plan.h"

#include <unistd.h>

#include <algorithm>

namespace prnn::cpu {

namespace {

int64_t l2_bytes() {
  static const int64_t bytes = [] {
#ifdef _SC_LEVEL2_CACHE_SIZE
    const long size = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (size > 0) return static_cast<int64_t>(size);
#endif
    return int64_t{512} << 10;
  }();
  return bytes;
}

// Approximate throughput of one core on processors of 2018 to 2024. The model only compares partitions of the same
// layer, so only the ratios matter. Measured on Zen 3: 90 GFLOP/s with 8 lanes; 130, 60 and 20 GB/s.
constexpr double kFlopsPerLane = 11e9;
constexpr double kL1 = 130e9, kL2 = 60e9, kBeyond = 20e9;
constexpr double kBarrier = 0.25e-6;   // two cores of one socket: 0.1 us of latency, plus the skew of their arrival
constexpr double kPointwise = 1.5e-9;  // a gate of a vector of units: an exponential or two, at 8 lanes

double step_seconds(const Layer& layer, int64_t lanes, int64_t batch_groups, int64_t hidden_groups) {
  const int64_t G = cell_row(layer).gates, vectors = (layer.H + lanes - 1) / lanes;
  const double rows = double((layer.B + batch_groups - 1) / batch_groups);
  const double own = double((vectors + hidden_groups - 1) / hidden_groups) * G;
  const double units = double(recurrent_units(layer)), bytes = own * lanes * units * 4;
  const double bandwidth = bytes < 24e3 ? kL1 : bytes < 0.8 * double(l2_bytes()) ? kL2 : kBeyond;
  const double product = std::max(2 * rows * own * lanes * units / (kFlopsPerLane * lanes), bytes / bandwidth);
  const double barrier = hidden_groups > 1 ? kBarrier * (1 + 0.1 * double(hidden_groups)) : 0;
  return product + rows * own * kPointwise + barrier;
}

// Rows (steps times samples) of a phase of large matmuls: enough to amortise the loads and stores of the result, few
// enough for the operands to stay in the cache. Weight gradients beyond kFarBytes are loaded from outside the cache
// once a chunk, which justifies longer ones; rows of half the bytes may be twice as many (where bfloat16 is multiplied
// as float, they are no shorter; in float32 twice as many made no difference).
constexpr int64_t kForwardBytes = 256 << 10, kBackwardRows = 256, kFarBytes = 4 << 20;

int64_t backward_rows(const Layer& layer) {
  const int64_t weights = cell_row(layer).gates * layer.H * (recurrent_units(layer) + (layer.weight_ih ? layer.I : 0));
  return kBackwardRows * (layer.dtype == Dtype::bfloat16 ? 2 : 1) * (weights * 4 > kFarBytes ? 2 : 1);
}

int64_t chunk_steps(const Layer& layer, const Plan& plan, bool backward) {
  const int64_t all = std::max<int64_t>(layer.T, 1);
  if (backward) return std::clamp<int64_t>(backward_rows(layer) / std::max<int64_t>(1, layer.B), 1, all);
  const int64_t samples = (layer.B + plan.batch_groups - 1) / plan.batch_groups;
  const int64_t step = std::max<int64_t>(1, samples * cell_row(layer).gates * layer.H * 4 / plan.hidden_groups);
  return std::clamp<int64_t>(kForwardBytes / step, 1, all);
}

}  // namespace

Plan make_plan(const Layer& layer, int64_t lanes, int64_t members, bool backward) {
  Plan best{1, 1, 1, step_seconds(layer, lanes, 1, 1)};
  const int64_t vectors = (layer.H + lanes - 1) / lanes;
  // A group begins with a vector of units, which must be one of a head's.
  const int64_t units = recurrent_units(layer);
  const bool divides = units == layer.H || units <= 1 || units % lanes == 0;
  for (int64_t batch_groups = 1; batch_groups <= std::min(members, layer.B); ++batch_groups) {
    const int64_t hidden_groups = divides ? std::min(members / batch_groups, vectors) : 1;
    for (const int64_t hidden : {int64_t{1}, hidden_groups}) {
      const double seconds = step_seconds(layer, lanes, batch_groups, hidden);
      if (seconds < best.seconds) best = {batch_groups, hidden, 1, seconds};
    }
  }
  best.chunk = chunk_steps(layer, best, backward);
  best.seconds *= double(layer.T);
  return best;
}

}  // namespace prnn::cpu
