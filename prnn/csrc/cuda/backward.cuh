// The backward pass, from the last step to the first: the gates' gradients are propagated to the preceding step by
// W_hh^T; they, or in clusters the blocks' shares of the sums (cluster_sums.cuh), are exchanged between all blocks of
// the team. The weights' gradient is one large matmul afterwards, by torch. Shapes as in layer_args.h.
#pragma once

#include "recurrence.h"
#include "team.cuh"

namespace prnn::cuda {

template <class C, class E, Scheme kScheme, int kShape>
class BackwardPass : Team<C, E, true, kScheme, kShape> {
  using Base = Team<C, E, true, kScheme, kShape>;
  using Base::B, Base::G, Base::H, Base::T, Base::exchange, Base::plan, Base::kItems;

 public:
  PRNN_DEVICE_MEMBER BackwardPass(const Plan& plan, int team, const WaitLimit& limit, const SerialBackward& pass,
                                  void* workspace)
      : Base(plan, team, limit, pass, workspace),
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
    for (int tile = this->first_tile; tile < plan.tiles; tile += this->tile_step) {
      each([&](int j) { begin(states[j], j, tile); });
      for (int s = T; s-- > 0;) {
        each([&](int j) {
          states[j].now = states[j].before;
          prefetch(states[j], j, tile, s - 1);
        });
        if (s + 1 < T) this->finish_sums();
        // What others wait for comes first: results follow the publication.
        each([&](int j) {
          step(states[j], j, tile, s);
          put(states[j]);
        });
        this->publish([&] { each([&](int j) { exchange.template clear<G>(states[j].published_at); }); });
        each([&](int j) { write(states[j], j, tile, s); });
      }
      if (T > 0) this->finish_sums();
      each([&](int j) { end(states[j], j, tile); });
    }
  }

 private:
  static constexpr bool kNeedsH = C::kSaved == 0, kNeedsHPrev = C::kNeedsHPrev, kNeedsOutput = kNeedsH || kNeedsHPrev;

  // The inputs of one step.
  struct Kept {
    E saved[C::kSaved + 1], output, grad_output;
    bool reset;
  };
  // Of an item.
  struct State {
    int published_at;
    int length;                             // of the sample; negative where there is no unit or no sample
    Kept now, before;                       // of the current step and of the next one in backward order
    const E *saved, *output, *grad_output;  // of the step after `before`
    E* grad_x;                              // of the current step
    float grad_h, grad_c;
    bool cut;  // no gradient passes: the state was reset before the last processed step, or there was no such step
    E to_x[G], to_h[G];
  };

  template <class Body>
  PRNN_DEVICE_MEMBER void each(const Body& body) const {
#pragma unroll
    for (int j = 0; j < kItems; ++j)
      if (this->has(j)) body(j);
  }
  PRNN_DEVICE_MEMBER int sign() const { return reverse ? 1 : -1; }

  PRNN_DEVICE_MEMBER void begin(State& state, int j, int tile) const {
    const typename Base::Place place = this->place(j, tile);
    state.length = -1;
    state.published_at = this->published_at(j);
    state.cut = false;
    state.grad_h = state.grad_c = 0;
    if (!place.there) return;
    const int b = place.sample, unit = place.unit;
    const int64_t at = int64_t(b) * H + unit;
    state.length = static_cast<int>(Steps(pass).length(b));
    if (pass.grad_h_n) state.grad_h = to_float(static_cast<const E*>(pass.grad_h_n)[at]);
    if (C::kStates && pass.grad_c_n) state.grad_c = pass.grad_c_n[at];
    const int t = reverse || state.length == 0 ? 0 : state.length - 1;
    if (C::kSaved > 0) state.saved = static_cast<const E*>(pass.saved) + (int64_t(t) * B + b) * C::kSaved * H + unit;
    if (kNeedsOutput) state.output = row_of<E>(pass.output, t, b) + unit;
    if (has_grad_output) state.grad_output = row_of<E>(pass.grad_output, t, b) + unit;
    state.grad_x = row_of<E>(pass.grad_x, t, b) + unit;
    prefetch(state, j, tile, T - 1);
  }

  PRNN_DEVICE_MEMBER void prefetch(State& state, int j, int tile, int s) const {
    if (s < 0 || s >= state.length) return;
    Kept& to = state.before;
    if (resets) to.reset = Steps(pass).reset(s, this->place(j, tile).sample);
#pragma unroll
    for (int i = 0; i < C::kSaved; ++i) to.saved[i] = state.saved[i * H];
    if (C::kSaved > 0) state.saved += saved_step;
    if (kNeedsOutput) to.output = *state.output, state.output += output_step;
    if (has_grad_output) to.grad_output = *state.grad_output, state.grad_output += grad_output_step;
  }

  // The gradient of h after the step, as propagated by the steps processed so far.
  PRNN_DEVICE_MEMBER void receive(State& state, int j) const {
    float sum[1];
    this->total(sum, j);
    if (!state.cut) state.grad_h += sum[0];
  }

  PRNN_DEVICE_MEMBER void step(State& state, int j, int tile, int s) const {
    if (s + 1 < T) receive(state, j);
#pragma unroll
    for (int q = 0; q < G; ++q) state.to_x[q] = state.to_h[q] = E{};
    const bool active = s < state.length;
    if (active) differentiate(state, j, tile, s);
    state.cut = !active || (resets && state.now.reset);
  }
  PRNN_DEVICE_MEMBER void put(const State& state) const {
    E published[G];
#pragma unroll
    for (int q = 0; q < G; ++q) {
      published[q] = state.to_h[q];
      if constexpr (kIsFloat<E>)
        if (plan.tf32) published[q] = round_to_tf32(published[q]);
    }
    exchange.put(state.published_at, published);
  }

  PRNN_DEVICE_MEMBER void differentiate(State& state, int j, int tile, int s) const {
    const Kept& now = state.now;
    const Kept& before = state.before;
    const bool reset = resets && now.reset;
    float kept[C::kSaved + 1], grad_x[G], grad_gates_h[G], h_prev = 0, c_prev = 0;
#pragma unroll
    for (int i = 0; i < C::kSaved; ++i) kept[i] = to_float(now.saved[i]);
    if (s > 0 && !reset) {
      if (kNeedsHPrev) h_prev = to_float(before.output);
      if (C::kStates) c_prev = to_float(before.saved[C::kSaved > 0 ? C::kSaved - 1 : 0]);
    } else if (!reset) {
      const typename Base::Place place = this->place(j, tile);
      const int64_t at = int64_t(place.sample) * H + place.unit;
      if (kNeedsHPrev) h_prev = to_float(static_cast<const E*>(pass.h0)[at]);
      if (C::kStates) c_prev = pass.c0[at];
    }
    const float grad = state.grad_h + (has_grad_output ? to_float(now.grad_output) : 0);
    const float h = kNeedsH ? to_float(now.output) : 0;
    const float past = C::template backward<float>(grad, &state.grad_c, h, h_prev, &c_prev, nullptr, nullptr, kept,
                                                   grad_x, grad_gates_h, nullptr, nullptr);
#pragma unroll
    for (int q = 0; q < G; ++q) {
      state.to_x[q] = element_of<E>(grad_x[q]);
      state.to_h[q] = element_of<E>(grad_gates_h[q]);
    }
    state.grad_h = reset ? 0 : past;
    if (reset) state.grad_c = 0;
  }

  // Zero past the sample's length, where the steps are in the order of time in reverse, too.
  PRNN_DEVICE_MEMBER void write(State& state, int j, int tile, int s) const {
    if (state.length < 0) return;
    E* to = state.grad_x;
    if (s < state.length) {
      state.grad_x += grad_x_step;
    } else {
      const typename Base::Place place = this->place(j, tile);
      to = row_of<E>(pass.grad_x, s, place.sample) + place.unit;
    }
#pragma unroll
    for (int q = 0; q < G; ++q) to[q * H] = state.to_x[q];
    if (!C::kSplitsGates) return;
    E* split = static_cast<E*>(pass.grad_gates_h) + (to - static_cast<E*>(pass.grad_x.data));
#pragma unroll
    for (int q = 0; q < G; ++q) split[q * H] = state.to_h[q];
  }

  PRNN_DEVICE_MEMBER void end(State& state, int j, int tile) const {
    if (T > 0) receive(state, j);
    if (state.length < 0) return;
    const typename Base::Place place = this->place(j, tile);
    const int64_t at = int64_t(place.sample) * H + place.unit;
    if (pass.grad_h0) static_cast<E*>(pass.grad_h0)[at] = element_of<E>(state.grad_h);
    if (C::kStates && pass.grad_c0) pass.grad_c0[at] = state.grad_c;
  }

  const SerialBackward& pass;
  const bool reverse, resets, has_grad_output;
  // From one step to the one before it, in elements; the launch checks that they fit.
  const int saved_step, output_step, grad_output_step, grad_x_step;
  State states[kItems];
};

}  // namespace prnn::cuda
