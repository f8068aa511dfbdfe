// The backward pass, from the last step to the first: the gates' gradients are propagated to the preceding step by
// W_hh^T; they, or in clusters the blocks' shares of the sums (cluster_sums.cuh), are exchanged between all blocks of
// the team. The weights' gradient is one large matmul afterwards, by torch. Shapes as in layer_args.h.
#pragma once

#include "passes.h"
#include "team.cuh"

namespace prnn::cuda {

template <class C, class E, Scheme kScheme, int kShape>
class BackwardPass : Team<C, E, true, kScheme, kShape> {
  using Base = Team<C, E, true, kScheme, kShape>;
  using Base::B, Base::G, Base::H, Base::T, Base::exchange, Base::plan, Base::kItems;
  using Saved = SavedOf<C, E>;

 public:
  PRNN_DEVICE_MEMBER BackwardPass(const Plan& plan, int team, int head, const WaitLimit& limit,
                                  const SerialBackward& pass, void* workspace)
      : Base(plan, team, head, limit, pass, nullptr, workspace),
        pass(pass),
        reverse(pass.reverse),
        resets(pass.resets),
        has_grad_output(pass.grad_output.data),
        saved_step(sign() * B * C::kSaved * H),
        output_step(sign() * static_cast<int>(hidden().step)),
        grad_output_step(sign() * static_cast<int>(pass.grad_output.step)),
        grad_x_step(sign() * static_cast<int>(pass.grad_x.step)),
        inputs_step(sign() * static_cast<int>(pass.inputs.step)),
        grad_inputs_step(sign() * static_cast<int>(pass.grad_inputs.step)) {}

  PRNN_DEVICE_MEMBER void run() {
    if (this->idle()) return;
    for (int tile = this->first_tile; tile < plan.tiles; tile += this->tile_step) {
      each([&](int j) { begin(states[j], j, tile); });
      for (int last = T - 1; last >= 0; last -= kAhead) {
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          const int s = last - i;
          if (kAhead > 1 && s < 0) break;
          if (i == 0)
            each([&](int j) {
              take(states[j]);
              prefetch(states[j], j, tile, s - kAhead);
            });
          if (s + 1 < T) this->finish_sums();
          // What others wait for comes first: results follow the publication.
          each([&](int j) {
            step(states[j], states[j].now[i], i + 1 < kAhead ? states[j].now[i + 1] : states[j].ahead[0], j, tile, s);
            put(states[j]);
          });
          this->publish([&] { each([&](int j) { exchange.template clear<G>(states[j].published_at); }); });
          each([&](int j) { write(states[j], j, tile, s); });
        }
      }
      if (T > 0) this->finish_sums();
      each([&](int j) { end(states[j], j, tile); });
    }
  }

 private:
  static constexpr bool kNeedsH = C::kNeedsH, kNeedsHPrev = C::kNeedsHPrev, kNeedsOutput = kNeedsH || kNeedsHPrev;
  static constexpr int kAhead = Base::ahead(C::kSaved + 1 + kNeedsOutput + C::kInputs);

  // The inputs of one step.
  struct Kept {
    Saved saved[C::kSaved + 1];
    E output, grad_output;  // output: h
    float inputs[C::kInputs + 1];
    bool reset;
  };
  // Of an item.
  struct State {
    int published_at;
    int length;                       // of the sample; negative where there is no unit or no sample
    Kept now[kAhead], ahead[kAhead];  // of kAhead steps, the current one among them, and of the next, in backward order
    const E *output, *grad_output;    // of the step after those, as are `saved` and `inputs`
    const Saved* saved;
    const float* inputs;
    E* grad_x;  // of the current step, as is `grad_inputs`
    float* grad_inputs;
    float grad_h, grad_states[C::kStates + 1], grad_params[C::kParams + 1], to_inputs[C::kInputs + 1];
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
  PRNN_DEVICE_MEMBER const Sequence<const void>& hidden() const { return C::kOutput < 0 ? pass.output : pass.hidden; }

  PRNN_DEVICE_MEMBER void begin(State& state, int j, int tile) const {
    const typename Base::Place place = this->place(j, tile);
    state.length = -1;
    state.published_at = this->published_at(j);
    state.cut = false;
    state.grad_h = 0;
    clear(state.grad_states), clear(state.grad_params), clear(state.to_inputs);
    if (!place.there) return;
    const int b = place.sample, unit = place.unit;
    const int64_t at = int64_t(b) * H + unit;
    state.length = static_cast<int>(Steps(pass).length(b));
    if (pass.grad_h_n) state.grad_h = to_float(static_cast<const E*>(pass.grad_h_n)[at]);
#pragma unroll
    for (int k = 0; k < C::kStates; ++k)
      if (pass.grad_c_n) state.grad_states[k] = pass.grad_c_n[k * pass.state_step + at];
    const int t = reverse || state.length == 0 ? 0 : state.length - 1;
    if (C::kSaved > 0)
      state.saved = static_cast<const Saved*>(pass.saved) + (int64_t(t) * B + b) * C::kSaved * H + unit;
    if (kNeedsOutput) state.output = row_of<E>(hidden(), t, b) + unit;
    if (has_grad_output) state.grad_output = row_of<E>(pass.grad_output, t, b) + unit;
    state.grad_x = row_of<E>(pass.grad_x, t, b) + unit;
    if (C::kInputs) state.inputs = row_of<float>(pass.inputs, t, b) + unit;
    if (C::kInputs && pass.grad_inputs.data) state.grad_inputs = row_of<float>(pass.grad_inputs, t, b) + unit;
    prefetch(state, j, tile, T - 1);
  }

  // Of kAhead steps from s on.
  PRNN_DEVICE_MEMBER void prefetch(State& state, int j, int tile, int s) const {
#pragma unroll
    for (int i = 0; i < kAhead; ++i, --s) {
      if (s < 0 || s >= state.length) continue;
      Kept& to = state.ahead[i];
      if (resets) to.reset = Steps(pass).reset(s, this->place(j, tile).sample);
#pragma unroll
      for (int k = 0; k < C::kSaved; ++k) to.saved[k] = state.saved[k * H];
      if (C::kSaved > 0) state.saved += saved_step;
      if (kNeedsOutput) to.output = *state.output, state.output += output_step;
      if (has_grad_output) to.grad_output = *state.grad_output, state.grad_output += grad_output_step;
#pragma unroll
      for (int k = 0; k < C::kInputs; ++k) to.inputs[k] = state.inputs[k * H];
      if (C::kInputs) state.inputs += inputs_step;
    }
  }
  static PRNN_DEVICE_MEMBER void take(State& state) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) state.now[i] = state.ahead[i];
  }

  // The gradient of h after the step, as propagated by the steps processed so far.
  PRNN_DEVICE_MEMBER void receive(State& state, int j) const {
    float sum[1];
    this->total(sum, j, state.to_h);
    if (!state.cut) state.grad_h += sum[0];
  }

  PRNN_DEVICE_MEMBER void step(State& state, const Kept& now, const Kept& before, int j, int tile, int s) const {
    if (s + 1 < T) receive(state, j);
#pragma unroll
    for (int q = 0; q < G; ++q) state.to_x[q] = state.to_h[q] = E{};
    clear(state.to_inputs);
    const bool active = s < state.length;
    if (active) differentiate(state, now, before, j, tile, s);
    state.cut = !active || (resets && now.reset);
  }
  PRNN_DEVICE_MEMBER void put(const State& state) const {
    E published[G];
#pragma unroll
    for (int q = 0; q < G; ++q) {
      published[q] = state.to_h[q];
      if constexpr (kIsFloat<E>)
        if (plan.tf32) published[q] = round_to_tf32(published[q]);
    }
    Base::put(state.published_at, published);
  }

  PRNN_DEVICE_MEMBER void differentiate(State& state, const Kept& now, const Kept& before, int j, int tile,
                                        int s) const {
    const bool reset = resets && now.reset;
    float kept[C::kSaved + 1], grad_x[G], grad_gates_h[G], h_prev = 0, states_prev[C::kStates + 1] = {};
    float params[C::kParams + 1], grad_params[C::kParams + 1];
#pragma unroll
    for (int i = 0; i < C::kSaved; ++i) kept[i] = to_float(now.saved[i]);
    if (s > 0 && !reset) {
      if (kNeedsHPrev) h_prev = to_float(before.output);
#pragma unroll
      for (int k = 0; k < C::kStates; ++k)
        if (C::state_at(k) >= 0) states_prev[k] = to_float(before.saved[C::state_at(k) < 0 ? 0 : C::state_at(k)]);
    } else if (!reset) {
      const typename Base::Place place = this->place(j, tile);
      const int64_t at = int64_t(place.sample) * H + place.unit;
      if (kNeedsHPrev) h_prev = to_float(static_cast<const E*>(pass.h0)[at]);
#pragma unroll
      for (int k = 0; k < C::kStates; ++k)
        if (C::state_at(k) >= 0) states_prev[k] = pass.c0[k * pass.state_step + at];
    }
    this->params(params, j);
    float grad = state.grad_h;
    float& grad_of_output = C::kOutput < 0 ? grad : state.grad_states[C::kOutput < 0 ? 0 : C::kOutput];
    if (has_grad_output) grad_of_output += to_float(now.grad_output);
    const float h = kNeedsH ? to_float(now.output) : 0;
    const float past = C::template backward<float>(grad, state.grad_states, h, h_prev, states_prev, params, now.inputs,
                                                   kept, grad_x, grad_gates_h, grad_params, state.to_inputs);
#pragma unroll
    for (int q = 0; q < G; ++q) {
      state.to_x[q] = element_of<E>(grad_x[q]);
      state.to_h[q] = element_of<E>(grad_gates_h[q]);
    }
#pragma unroll
    for (int n = 0; n < C::kParams; ++n) state.grad_params[n] += grad_params[n];
    state.grad_h = reset ? 0 : past;
    if (reset) clear(state.grad_states);
  }

  // Zero past the sample's length, where the steps are in the order of time in reverse, too.
  PRNN_DEVICE_MEMBER void write(State& state, int j, int tile, int s) const {
    if (state.length < 0) return;
    E* to = state.grad_x;
    float* to_inputs = state.grad_inputs;
    const bool inputs = C::kInputs && pass.grad_inputs.data;
    if (s < state.length) {
      state.grad_x += grad_x_step;
      if (inputs) state.grad_inputs += grad_inputs_step;
    } else {
      const typename Base::Place place = this->place(j, tile);
      to = row_of<E>(pass.grad_x, s, place.sample) + place.unit;
      if (inputs) to_inputs = row_of<float>(pass.grad_inputs, s, place.sample) + place.unit;
    }
#pragma unroll
    for (int k = 0; k < C::kInputs; ++k)
      if (inputs) to_inputs[k * H] = state.to_inputs[k];
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
#pragma unroll
    for (int k = 0; k < C::kStates; ++k)
      if (pass.grad_c0) pass.grad_c0[k * pass.state_step + at] = state.grad_states[k];
#pragma unroll
    for (int n = 0; n < C::kParams; ++n)
      if (pass.grad_params_of_samples)
        pass.grad_params_of_samples[(int64_t(place.sample) * C::kParams + n) * H + place.unit] = state.grad_params[n];
  }
  template <int kN>
  static PRNN_DEVICE_MEMBER void clear(float (&values)[kN]) {
#pragma unroll
    for (int i = 0; i + 1 < kN; ++i) values[i] = 0;
  }

  const SerialBackward& pass;
  const bool reverse, resets, has_grad_output;
  // From one step to the one before it, in elements; the launch checks that they fit.
  const int saved_step, output_step, grad_output_step, grad_x_step, inputs_step, grad_inputs_step;
  State states[kItems];
};

}  // namespace prnn::cuda
