// The backward pass, from the last step to the first: the gates' gradients are exchanged between all blocks of the team
// and propagated to the preceding step by W_hh^T. The weights' gradient is one large matmul afterwards, by torch.
// Shapes as in layer_args.h.
#pragma once

#include "recurrence.h"
#include "team.cuh"

namespace prnn::cuda {

template <class C, class E, bool kGrid, int kShape>
class BackwardPass : Team<C, E, true, kGrid, kShape> {
  using Base = Team<C, E, true, kGrid, kShape>;
  using Base::B, Base::G, Base::H, Base::T, Base::exchange, Base::plan;

 public:
  PRNN_DEVICE_MEMBER BackwardPass(const Plan& plan, const WaitLimit& limit, const SerialBackward& pass, void* workspace)
      : Base(plan, limit, pass, workspace),
        pass(pass),
        reverse(pass.reverse),
        resets(pass.resets),
        has_grad_output(pass.grad_output.data),
        saved_step(sign() * B * C::kSaved * H),
        output_step(sign() * static_cast<int>(pass.output.step)),
        grad_output_step(sign() * static_cast<int>(pass.grad_output.step)),
        grad_x_step(sign() * static_cast<int>(pass.grad_x.step)) {}

  PRNN_DEVICE_MEMBER void run() {
    if (this->idle()) return;
    for (int tile = plan.team(block()) / plan.directions; tile < plan.tiles; tile += plan.teams / plan.directions) {
      begin(tile);
      for (int s = T; s-- > 0;) {
        item.now = item.before;
        prefetch(tile, s - 1);
        if (s + 1 < T) this->multiply();
        // What others wait for comes first: results follow the publication.
        if (this->has_item()) {
          step(tile, s);
          put();
        }
        exchange.publish([&] {
          if (this->has_item()) exchange.template clear<G>(item.published_at);
        });
        if (this->has_item()) write(tile, s);
      }
      if (T > 0) this->multiply();
      end(tile);
    }
  }

 private:
  static constexpr bool kNeedsH = C::kSaved == 0, kNeedsHPrev = C::kNeedsHPrev, kNeedsOutput = kNeedsH || kNeedsHPrev;

  // The inputs of one step.
  struct Kept {
    E saved[C::kSaved + 1], output, grad_output;
    bool reset;
  };
  struct Item {
    int published_at;
    int length;                             // of the sample; negative where there is no unit or no sample
    Kept now, before;                       // of the current step and of the next one in backward order
    const E *saved, *output, *grad_output;  // of the step after `before`
    E* grad_x;                              // of the current step, in elements from the pass's
    float grad_h, grad_c;
    bool cut;  // the state was reset before the last processed step: no gradient passes
    E to_x[G], to_h[G];
  };

  PRNN_DEVICE_MEMBER int sign() const { return reverse ? 1 : -1; }

  PRNN_DEVICE_MEMBER void begin(int tile) {
    const typename Base::Place place = this->place(tile);
    item.length = -1;
    if (!this->has_item()) return;
    item.published_at = this->published_at(G);
    item.cut = false;
    item.grad_h = item.grad_c = 0;
    if (!place.there) return;
    const int b = place.sample, unit = place.unit;
    const int64_t at = int64_t(b) * H + unit;
    item.length = static_cast<int>(Steps(pass).length(b));
    if (pass.grad_h_n) item.grad_h = to_float(static_cast<const E*>(pass.grad_h_n)[at]);
    if (C::kStates && pass.grad_c_n) item.grad_c = pass.grad_c_n[at];
    const int t = reverse || item.length == 0 ? 0 : item.length - 1;
    if (C::kSaved > 0) item.saved = static_cast<const E*>(pass.saved) + (int64_t(t) * B + b) * C::kSaved * H + unit;
    if (kNeedsOutput) item.output = row_of<E>(pass.output, t, b) + unit;
    if (has_grad_output) item.grad_output = row_of<E>(pass.grad_output, t, b) + unit;
    item.grad_x = row_of<E>(pass.grad_x, t, b) + unit;
    prefetch(tile, T - 1);
  }

  PRNN_DEVICE_MEMBER void prefetch(int tile, int s) {
    if (s < 0 || s >= item.length) return;
    Kept& to = item.before;
    if (resets) to.reset = Steps(pass).reset(s, this->place(tile).sample);
#pragma unroll
    for (int i = 0; i < C::kSaved; ++i) to.saved[i] = item.saved[i * H];
    if (C::kSaved > 0) item.saved += saved_step;
    if (kNeedsOutput) to.output = *item.output, item.output += output_step;
    if (has_grad_output) to.grad_output = *item.grad_output, item.grad_output += grad_output_step;
  }

  // The gradient of h after the step, as propagated by the steps processed so far.
  PRNN_DEVICE_MEMBER void receive() {
    float sum[1];
    this->total(sum);
    if (!item.cut) item.grad_h += sum[0];
  }

  PRNN_DEVICE_MEMBER void step(int tile, int s) {
    if (s + 1 < T) receive();
#pragma unroll
    for (int q = 0; q < G; ++q) item.to_x[q] = item.to_h[q] = E{};
    const bool active = s < item.length;
    if (active) differentiate(tile, s);
    item.cut = active && resets && item.now.reset;
  }
  PRNN_DEVICE_MEMBER void put() const {
    E published[G];
#pragma unroll
    for (int q = 0; q < G; ++q) {
      published[q] = item.to_h[q];
      if constexpr (kIsFloat<E>)
        if (plan.tf32) published[q] = round_to_tf32(published[q]);
    }
    exchange.put(item.published_at, published);
  }

  PRNN_DEVICE_MEMBER void differentiate(int tile, int s) {
    const Kept& now = item.now;
    const Kept& before = item.before;
    const bool reset = resets && now.reset;
    float kept[C::kSaved + 1], grad_x[G], grad_gates_h[G], h_prev = 0, c_prev = 0;
#pragma unroll
    for (int i = 0; i < C::kSaved; ++i) kept[i] = to_float(now.saved[i]);
    if (s > 0 && !reset) {
      if (kNeedsHPrev) h_prev = to_float(before.output);
      if (C::kStates) c_prev = to_float(before.saved[C::kSaved > 0 ? C::kSaved - 1 : 0]);
    } else if (!reset) {
      const typename Base::Place place = this->place(tile);
      const int64_t at = int64_t(place.sample) * H + place.unit;
      if (kNeedsHPrev) h_prev = to_float(static_cast<const E*>(pass.h0)[at]);
      if (C::kStates) c_prev = pass.c0[at];
    }
    const float grad = item.grad_h + (has_grad_output ? to_float(now.grad_output) : 0);
    const float h = kNeedsH ? to_float(now.output) : 0;
    const float past = C::template backward<float>(grad, &item.grad_c, h, h_prev, &c_prev, nullptr, nullptr, kept,
                                                   grad_x, grad_gates_h, nullptr, nullptr);
#pragma unroll
    for (int q = 0; q < G; ++q) {
      item.to_x[q] = element_of<E>(grad_x[q]);
      item.to_h[q] = element_of<E>(grad_gates_h[q]);
    }
    item.grad_h = reset ? 0 : past;
    if (reset) item.grad_c = 0;
  }

  // Zero past the sample's length, where the steps are in the order of time in reverse, too.
  PRNN_DEVICE_MEMBER void write(int tile, int s) {
    if (item.length < 0) return;
    E* to = item.grad_x;
    if (s < item.length) {
      item.grad_x += grad_x_step;
    } else {
      const typename Base::Place place = this->place(tile);
      to = row_of<E>(pass.grad_x, s, place.sample) + place.unit;
    }
#pragma unroll
    for (int q = 0; q < G; ++q) to[q * H] = item.to_x[q];
    if (!C::kSplitsGates) return;
    E* split = static_cast<E*>(pass.grad_gates_h) + (to - static_cast<E*>(pass.grad_x.data));
#pragma unroll
    for (int q = 0; q < G; ++q) split[q * H] = item.to_h[q];
  }

  PRNN_DEVICE_MEMBER void end(int tile) {
    if (!this->has_item()) return;
    if (T > 0) receive();
    if (item.length < 0) return;
    const typename Base::Place place = this->place(tile);
    const int64_t at = int64_t(place.sample) * H + place.unit;
    if (pass.grad_h0) static_cast<E*>(pass.grad_h0)[at] = element_of<E>(item.grad_h);
    if (C::kStates && pass.grad_c0) pass.grad_c0[at] = item.grad_c;
  }

  const SerialBackward& pass;
  const bool reverse, resets, has_grad_output;
  // From one step to the one before it, in elements; the launch checks that they fit.
  const int saved_step, output_step, grad_output_step, grad_x_step;
  Item item;
};

}  // namespace prnn::cuda
