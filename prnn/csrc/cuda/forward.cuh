// The forward pass: gates_h = W_hh h, the cell, the exchange of the new h between all blocks of the team. Shapes as in
// layer_args.h.
#pragma once

#include "team.cuh"

namespace prnn::cuda {

template <class C, class E, Scheme kScheme, int kShape>
class ForwardPass : Team<C, E, false, kScheme, kShape> {
  using Base = Team<C, E, false, kScheme, kShape>;
  using Base::B, Base::G, Base::H, Base::T, Base::exchange, Base::plan, Base::kItems;
  using Saved = SavedOf<C, E>;

 public:
  PRNN_DEVICE_MEMBER ForwardPass(const Plan& plan, int team, int head, const WaitLimit& limit, const Forward& pass,
                                 void* workspace)
      : Base(plan, team, head, limit, pass, pass.bias_hh, workspace),
        pass(pass),
        reverse(pass.reverse),
        saves(C::kSaved > 0 && pass.saved),
        resets(pass.resets),
        x_step(sign() * static_cast<int>(pass.x.step)),
        output_step(sign() * static_cast<int>(pass.output.step)),
        saved_step(sign() * B * C::kSaved * H),
        hidden_step(sign() * static_cast<int>(pass.hidden.step)),
        inputs_step(sign() * static_cast<int>(pass.inputs.step)) {}

  PRNN_DEVICE_MEMBER void run() {
    if (this->idle()) return;
    for (int tile = this->first_tile; tile < plan.tiles; tile += this->tile_step) {
      each([&](int j) { begin(states[j], j, tile); });
      if (T > 0) publish();
      each([&](int j) { prefetch(states[j], j, tile, 0); });
      for (int first = 0; first < T; first += kAhead) {
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          const int s = first + i;
          if (kAhead > 1 && s >= T) break;
          this->finish_sums();
          // What others wait for comes first: results and the inputs of later steps follow the publication. Not after
          // the last step, where the slot is that of the next tile's h0.
          each([&](int j) {
            if (i == 0) take(states[j]);
            step(states[j], states[j].now[i], j, s);
            if (s + 1 < T) put(states[j]);
          });
          if (s + 1 < T) publish();
          each([&](int j) {
            write(states[j], j, tile, s);
            if (i == 0) prefetch(states[j], j, tile, s + kAhead);
          });
        }
      }
      each([&](int j) { end(states[j], j, tile); });
    }
  }

 private:
  static constexpr int kAhead = Base::ahead(G + C::kInputs);

  // The inputs of one step.
  struct Given {
    E gates_x[G];
    float inputs[C::kInputs + 1];
    bool reset;
  };
  // Of an item.
  struct State {
    int published_at;
    int length;                        // of the sample; negative where there is no unit or no sample
    Given now[kAhead], ahead[kAhead];  // of kAhead steps, the current one among them, and of the next
    const E* x;                        // of the step after those, as are `inputs`
    const float* inputs;
    E *output, *hidden;  // of this step, as is `saved`
    Saved* saved;
    float h, states[C::kStates + 1];
    E h_element;
    Saved kept[C::kSaved + 1];
  };

  template <class Body>
  PRNN_DEVICE_MEMBER void each(const Body& body) const {
#pragma unroll
    for (int j = 0; j < kItems; ++j)
      if (this->has(j)) body(j);
  }
  PRNN_DEVICE_MEMBER int sign() const { return reverse ? -1 : 1; }

  PRNN_DEVICE_MEMBER void begin(State& state, int j, int tile) const {
    const typename Base::Place place = this->place(j, tile);
    state.length = -1;
    state.published_at = this->published_at(j);
    state.h = 0;
    clear(state.states);
    if (place.there) {
      const int b = place.sample;
      state.length = static_cast<int>(Steps(pass).length(b));
      state.h = to_float(static_cast<const E*>(pass.h0)[int64_t(b) * H + place.unit]);
#pragma unroll
      for (int k = 0; k < C::kStates; ++k) state.states[k] = pass.c0[k * pass.state_step + int64_t(b) * H + place.unit];
      const int t = reverse && state.length > 0 ? state.length - 1 : 0;
      state.x = row_of<E>(pass.x, t, b) + place.unit;
      state.output = row_of<E>(pass.output, t, b) + place.unit;
      if (saves) state.saved = saved_at(t, place);
      if (hides()) state.hidden = row_of<E>(pass.hidden, t, b) + place.unit;
      if (C::kInputs) state.inputs = row_of<float>(pass.inputs, t, b) + place.unit;
    }
    state.h_element = element_of<E>(state.h);
    put(state);
  }
  // Whether h is wanted besides the output.
  PRNN_DEVICE_MEMBER bool hides() const { return C::kOutput >= 0 && pass.hidden.data; }
  PRNN_DEVICE_MEMBER Saved* saved_at(int t, const typename Base::Place& place) const {
    return static_cast<Saved*>(pass.saved) + (int64_t(t) * B + place.sample) * C::kSaved * H + place.unit;
  }

  PRNN_DEVICE_MEMBER void put(const State& state) const {
    E published[1] = {state.h_element};
    if constexpr (kIsFloat<E>)
      if (plan.tf32) published[0] = round_to_tf32(state.h);
    Base::put(state.published_at, published);
  }
  PRNN_DEVICE_MEMBER void publish() {
    Base::publish([&] { each([&](int j) { exchange.template clear<1>(states[j].published_at); }); });
  }

  // The inputs of kAhead steps from s on.
  PRNN_DEVICE_MEMBER void prefetch(State& state, int j, int tile, int s) const {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (s + i >= state.length) return;
      Given& to = state.ahead[i];
      if (resets) to.reset = Steps(pass).reset(s + i, this->place(j, tile).sample);
#pragma unroll
      for (int q = 0; q < G; ++q) to.gates_x[q] = state.x[q * H];
      state.x += x_step;
#pragma unroll
      for (int k = 0; k < C::kInputs; ++k) to.inputs[k] = state.inputs[k * H];
      if (C::kInputs) state.inputs += inputs_step;
    }
  }
  static PRNN_DEVICE_MEMBER void take(State& state) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) state.now[i] = state.ahead[i];
  }

  PRNN_DEVICE_MEMBER void step(State& state, const Given& given, int j, int s) const {
    float gates_h[G], gates_x[G], params[C::kParams + 1], kept[C::kSaved + 1] = {};
    const E own[1] = {state.h_element};
    this->total(gates_h, j, own);
    if (s < state.length) {
      const bool reset = resets && given.reset;
#pragma unroll
      for (int q = 0; q < G; ++q) {
        gates_x[q] = to_float(given.gates_x[q]);
        gates_h[q] = (reset ? 0 : gates_h[q]) + this->bias(j, q);
      }
      if (reset) state.h = 0, clear(state.states);
      this->params(params, j);
      const float h = C::template forward<float>(gates_x, gates_h, state.h, state.states, params, given.inputs, kept);
      state.h_element = element_of<E>(h);
      state.h = to_float(state.h_element);
    }
#pragma unroll
    for (int i = 0; i < C::kSaved; ++i) state.kept[i] = element_of<Saved>(kept[i]);
  }

  // Zero past the sample's length, where the steps are in the order of time in reverse, too.
  PRNN_DEVICE_MEMBER void write(State& state, int j, int tile, int s) const {
    if (state.length < 0) return;
    if (s >= state.length) {
      const typename Base::Place place = this->place(j, tile);
      row_of<E>(pass.output, s, place.sample)[place.unit] = E{};
      if (hides()) row_of<E>(pass.hidden, s, place.sample)[place.unit] = E{};
      if (saves) save(state, saved_at(s, place));
      return;
    }
    *state.output = C::kOutput < 0 ? state.h_element : element_of<E>(state.states[C::kOutput < 0 ? 0 : C::kOutput]);
    state.output += output_step;
    if (hides()) *state.hidden = state.h_element, state.hidden += hidden_step;
    if (!saves) return;
    save(state, state.saved);
    state.saved += saved_step;
  }
  PRNN_DEVICE_MEMBER void save(const State& state, Saved* to) const {
#pragma unroll
    for (int i = 0; i < C::kSaved; ++i) to[i * H] = state.kept[i];
  }

  PRNN_DEVICE_MEMBER void end(const State& state, int j, int tile) const {
    if (state.length < 0) return;
    const typename Base::Place place = this->place(j, tile);
    const int64_t at = int64_t(place.sample) * H + place.unit;
    static_cast<E*>(pass.h_n)[at] = state.h_element;
#pragma unroll
    for (int k = 0; k < C::kStates; ++k)
      if (pass.c_n) pass.c_n[k * pass.state_step + at] = state.states[k];
  }
  static PRNN_DEVICE_MEMBER void clear(float (&states)[C::kStates + 1]) {
#pragma unroll
    for (int k = 0; k < C::kStates; ++k) states[k] = 0;
  }

  const Forward& pass;
  const bool reverse, saves, resets;
  // From one step to the next, in elements; the launch checks that they fit.
  const int x_step, output_step, saved_step, hidden_step, inputs_step;
  State states[kItems];
};

}  // namespace prnn::cuda
