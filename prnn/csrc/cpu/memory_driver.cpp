// Differentiable stacks and lists: the samples distributed over threads.
#include "memory_driver.h"

#include <algorithm>

#include "kernels.h"
#include "scratch.h"

namespace prnn::cpu {

namespace {

// Samples of a group: their memories stay in the L2 cache, and their lanes fill vectors.
constexpr int64_t kSamples = 8;

template <class Pass>
void run(const Pass& pass, const Parallel& parallel, int64_t (*kernel)(const Pass&, int64_t, int64_t, char*)) {
  parallel((pass.B + kSamples - 1) / kSamples, [&](int64_t begin, int64_t end) {
    const Scratch scratch(kernel(pass, 0, std::min(kSamples, pass.B), nullptr));
    for (int64_t i = begin; i < end; ++i)
      kernel(pass, i * kSamples, std::min((i + 1) * kSamples, pass.B), scratch.get());
  });
}

template <class E>
void find(Memory& m) {
  const int64_t row = m.B * m.S;
  const E* cells = static_cast<const E*>(m.memory0);
  const auto filled = [&](int64_t i) {
    for (int64_t l = 0; l < row; ++l)
      if (!(cells[i * row + l] == static_cast<E>(m.empty))) return true;
    return false;
  };
  m.first = 0, m.last = m.N;
  while (m.first < m.head && !filled(m.first)) ++m.first;
  while (m.last > m.head && !filled(m.last - 1)) --m.last;
}

}  // namespace

void memory_forward(const MemoryForward& pass, const Parallel& parallel) {
  run(pass, parallel, best_kernels(Dtype::float32).memory_forward);
}

void memory_backward(const MemoryBackward& pass, const Parallel& parallel) {
  run(pass, parallel, best_kernels(Dtype::float32).memory_backward);
}

void find_filled(Memory& memory) { memory.doubles ? find<double>(memory) : find<float>(memory); }

}  // namespace prnn::cpu
