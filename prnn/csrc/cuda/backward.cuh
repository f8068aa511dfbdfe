// The backward pass, from the last step to the first: the gates' gradients are exchanged between all blocks of the team
// and propagated to the preceding step by W_hh^T. The weights' gradient is one large matmul afterwards, by torch.
// Shapes as in layer_args.h.
#pragma once

#include "recurrence.h"
#include "team.cuh"

namespace prnn::cuda {

template <class C, class E, int kShape>
class BackwardPass : Team<C, E, true, kShape> {
  using Base = Team<C, E, true, kShape>;
  using Base::B, Base::G, Base::H, Base::T, Base::exchange, Base::kItems, Base::plan;

 public:
  PRNN_DEVICE_MEMBER BackwardPass(const Plan& plan, const WaitLimit& limit, const SerialBackward& pass, void* workspace)
      : Base(plan, limit, pass, workspace), pass(pass) {}

  PRNN_DEVICE_MEMBER void run() {
    for (int tile = plan.team(block()) / plan.directions; tile < plan.tiles; tile += plan.teams / plan.directions) {
#pragma unroll
      for (int j = 0; j < kItems; ++j) begin(items[j], j, tile);
      for (int s = T; s-- > 0;) {
#pragma unroll
        for (int j = 0; j < kItems; ++j) {
          items[j].now = items[j].before;
          prefetch(items[j], s - 1);
        }
        if (s + 1 < T) this->multiply();
#pragma unroll
        for (int j = 0; j < kItems; ++j)
          if (items[j].place.item()) step(items[j], j, s);
        exchange.publish();
      }
      if (T > 0) this->multiply();
#pragma unroll
      for (int j = 0; j < kItems; ++j) end(items[j], j);
    }
  }

 private:
  static constexpr bool kNeedsH = C::kSaved == 0, kNeedsHPrev = C::kNeedsHPrev;

  // The inputs of one step.
  struct Kept {
    Pair<E> saved[C::kSaved + 1], output, grad_output;
    bool reset;
  };
  struct Item {
    typename Base::Place place;
    int length;
    Kept now, before;  // of the current step and of the next one in backward order
    float grad_h[2], grad_c[2];
    bool cut;  // the state was reset before the last processed step: no gradient passes
  };

  PRNN_DEVICE_MEMBER int time(const Item& item, int s) const { return pass.reverse ? item.length - 1 - s : s; }

  PRNN_DEVICE_MEMBER void begin(Item& item, int j, int tile) {
    item.place = this->place(j, tile);
    item.cut = false;
    item.length = item.place.sample < B ? static_cast<int>(Steps(pass).length(item.place.sample)) : 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool own = this->there(item.place, half);
      const int64_t at = int64_t(item.place.sample) * H + item.place.unit(half);
      item.grad_h[half] = own && pass.grad_h_n ? to_float(static_cast<const E*>(pass.grad_h_n)[at]) : 0;
      item.grad_c[half] = C::kStates && own && pass.grad_c_n ? pass.grad_c_n[at] : 0;
    }
    prefetch(item, T - 1);
  }

  PRNN_DEVICE_MEMBER void prefetch(Item& item, int s) const {
    if (s < 0 || s >= item.length) return;
    Kept& to = item.before;
    const int t = time(item, s);
    const int b = item.place.sample;
    to.reset = Steps(pass).reset(s, b);
    const E* saved = static_cast<const E*>(pass.saved) + (int64_t(t) * B + b) * C::kSaved * H;
#pragma unroll
    for (int i = 0; i < C::kSaved; ++i) to.saved[i] = this->load(saved + i * H, item.place);
    if (kNeedsH || kNeedsHPrev) to.output = this->load(row_of<E>(pass.output, t, b), item.place);
    if (pass.grad_output.data) to.grad_output = this->load(row_of<E>(pass.grad_output, t, b), item.place);
  }

  // The gradient of h after the step, as propagated by the steps processed so far.
  PRNN_DEVICE_MEMBER void receive(Item& item, int j) const {
    float sums[2];
    this->total(sums, j, 0);
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (!item.cut) item.grad_h[half] += sums[half];
  }

  PRNN_DEVICE_MEMBER void step(Item& item, int j, int s) {
    if (s + 1 < T) receive(item, j);
    const bool active = s < item.length;
    E to_x[2][G] = {}, to_h[2][G] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!this->there(item.place, half)) continue;
      if (active) differentiate(item, half, s, to_x[half], to_h[half]);
      const int t = active ? time(item, s) : s;
      E* grad_x = row_of<E>(pass.grad_x, t, item.place.sample) + item.place.unit(half);
#pragma unroll
      for (int q = 0; q < G; ++q) grad_x[q * H] = to_x[half][q];
      if (!C::kSplitsGates) continue;
      E* grad_h = static_cast<E*>(pass.grad_gates_h) + t * pass.grad_x.step + item.place.sample * pass.grad_x.row +
                  item.place.unit(half);
#pragma unroll
      for (int q = 0; q < G; ++q) grad_h[q * H] = to_h[half][q];
    }
    item.cut = active && item.now.reset;
#pragma unroll
    for (int q = 0; q < G; ++q)
      exchange.put(item.place.group * G + q, item.place.column, published(to_h[0][q]), published(to_h[1][q]));
  }
  PRNN_DEVICE_MEMBER E published(E gradient) const {
    if constexpr (kIsFloat<E>) return plan.tf32 ? round_to_tf32(gradient) : gradient;
    return gradient;
  }

  PRNN_DEVICE_MEMBER void differentiate(Item& item, int half, int s, E* to_x, E* to_h) const {
    const Kept& now = item.now;
    const Kept& before = item.before;
    const int64_t at = int64_t(item.place.sample) * H + item.place.unit(half);
    float kept[C::kSaved + 1], grad_x[G], grad_gates_h[G], h_prev = 0, c_prev = 0;
#pragma unroll
    for (int i = 0; i < C::kSaved; ++i) kept[i] = to_float(now.saved[i][half]);
    if (kNeedsHPrev && !now.reset) h_prev = to_float(s > 0 ? before.output[half] : static_cast<const E*>(pass.h0)[at]);
    if (C::kStates && !now.reset)
      c_prev = s > 0 ? to_float(before.saved[C::kSaved > 0 ? C::kSaved - 1 : 0][half]) : pass.c0[at];
    const float grad = item.grad_h[half] + to_float(now.grad_output[half]);
    const float h = kNeedsH ? to_float(now.output[half]) : 0;
    const float past = C::template backward<float>(grad, &item.grad_c[half], h, h_prev, &c_prev, nullptr, nullptr, kept,
                                                   grad_x, grad_gates_h, nullptr, nullptr);
#pragma unroll
    for (int q = 0; q < G; ++q) {
      to_x[q] = element_of<E>(grad_x[q]);
      to_h[q] = element_of<E>(grad_gates_h[q]);
    }
    item.grad_h[half] = now.reset ? 0 : past;
    if (now.reset) item.grad_c[half] = 0;
  }

  PRNN_DEVICE_MEMBER void end(Item& item, int j) const {
    if (!item.place.item()) return;
    if (T > 0) receive(item, j);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!this->there(item.place, half)) continue;
      const int64_t at = int64_t(item.place.sample) * H + item.place.unit(half);
      if (pass.grad_h0) static_cast<E*>(pass.grad_h0)[at] = element_of<E>(item.grad_h[half]);
      if (C::kStates && pass.grad_c0) pass.grad_c0[at] = item.grad_c[half];
    }
  }

  const SerialBackward& pass;
  Item items[kItems];
};

}  // namespace prnn::cuda
