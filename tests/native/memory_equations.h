// A network with soft stacks or lists to be run: its sizes, numbers for all its operands, and its equations (csrc's
// stack_memory.h) written down once more, one number after the other.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "check.h"

namespace prnn::test {

struct MemoryProblem {
  int64_t T, B, H, S, N, K, A;
  bool list, recurrent, fresh;  // fresh: the memories are empty before the first step

  int64_t head() const { return list ? N / 2 : 0; }
  std::string name() const {
    return "memory T" + std::to_string(T) + " B" + std::to_string(B) + " H" + std::to_string(H) + " S" +
           std::to_string(S) + " N" + std::to_string(N) + " K" + std::to_string(K) + " A" + std::to_string(A) +
           (list ? " list" : " stack") + (recurrent ? " R" : "") + (fresh ? " fresh" : "");
  }
};

template <class E>
struct MemoryOperands {
  std::vector<E> x, hh, read, act, h0, memory0;  // act: of the values last

  MemoryOperands() = default;
  // Numbers that are floats, whatever E is.
  explicit MemoryOperands(const MemoryProblem& p) {
    Random random(7);
    const auto draw = [&](int64_t n) {
      std::vector<E> found(static_cast<std::size_t>(n));
      for (E& value : found) value = static_cast<E>(static_cast<float>(random.uniform(-1, 1)));
      return found;
    };
    x = draw(p.T * p.B * p.H), hh = draw(p.H * p.H), read = draw(p.H * p.S * p.K), act = draw((p.A + 1) * p.S * p.H);
    h0 = draw(p.B * p.H), memory0 = draw(p.N * p.B * p.S);
    if (p.fresh) std::fill(memory0.begin(), memory0.end(), E(-1));
  }
};

// What comes out. E is double, or a complex number with the derivative beside the value; `more` [T,B,(A+1)*S], where
// there is any, is added to the logits.
template <class E>
void follow(const MemoryProblem& p, const MemoryOperands<E>& c, const std::vector<E>& more, std::vector<E>& output,
            std::vector<E>& memory) {
  memory = c.memory0;
  output.assign(c.x.size(), E(0));
  std::vector<E> h = c.h0;
  const auto sigmoid = [](E x) { return E(1) / (E(1) + std::exp(-x)); };
  for (int64_t t = 0; t < p.T; ++t)
    for (int64_t b = 0; b < p.B; ++b) {
      const auto cell = [&](int64_t i, int64_t s) -> E& { return memory[(i * p.B + b) * p.S + s]; };
      std::vector<E> next(p.H);
      for (int64_t i = 0; i < p.H; ++i) {
        E sum = c.x[(t * p.B + b) * p.H + i];
        for (int64_t j = 0; p.recurrent && j < p.H; ++j) sum += c.hh[i * p.H + j] * h[b * p.H + j];
        for (int64_t s = 0; s < p.S; ++s)
          for (int64_t k = 0; k < p.K; ++k) sum += c.read[(i * p.S + s) * p.K + k] * cell(p.head() + k, s);
        next[i] = sigmoid(sum);
      }
      for (int64_t i = 0; i < p.H; ++i) output[(t * p.B + b) * p.H + i] = h[b * p.H + i] = next[i];
      for (int64_t s = 0; s < p.S; ++s) {
        const auto logit = [&](int64_t row) {
          E sum = more.empty() ? E(0) : more[(t * p.B + b) * (p.A + 1) * p.S + row];
          for (int64_t j = 0; j < p.H; ++j) sum += c.act[row * p.H + j] * next[j];
          return sum;
        };
        E a[3] = {E(0), E(0), E(0)}, total = E(0);
        for (int64_t i = 0; i < p.A; ++i) total += a[i] = std::exp(logit(s * p.A + i));
        for (E& share : a) share /= total;
        const E v = sigmoid(logit(p.S * p.A + s));
        std::vector<E> old(p.N + 2, E(-1));  // an empty cell at either end
        for (int64_t i = 0; i < p.N; ++i) old[i + 1] = cell(i, s);
        for (int64_t i = 0; i < p.N; ++i) {
          const E left = old[i], here = old[i + 1], right = old[i + 2];
          if (p.list)
            cell(i, s) = a[0] * left + a[1] * right + a[2] * (i == p.head() ? v : i < p.head() ? right : here);
          else
            cell(i, s) = a[0] * (i == 0 ? v : left) + a[1] * right + a[2] * here;
        }
      }
    }
}

}  // namespace prnn::test
