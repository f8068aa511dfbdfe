// The forward pass: gates_h = W_hh h, the cell, the exchange of the new h between all blocks of the team. Shapes as in
// layer_args.h.
#pragma once

#include "team.cuh"

namespace prnn::cuda {

template <class C, class E, Scheme kScheme, int kShape>
class ForwardPass : Team<C, E, false, kScheme, kShape> {
  using Base = Team<C, E, false, kScheme, kShape>;
  using Base::B, Base::G, Base::H, Base::T, Base::exchange, Base::plan, Base::kItems;

 public:
  PRNN_DEVICE_MEMBER ForwardPass(const Plan& plan, int team, const WaitLimit& limit, const Forward& pass,
                                 void* workspace)
      : Base(plan, team, limit, pass, workspace),
        pass(pass),
        reverse(pass.reverse),
        saves(C::kSaved > 0 && pass.saved),
        resets(pass.resets),
        x_step(sign() * static_cast<int>(pass.x.step)),
        output_step(sign() * static_cast<int>(pass.output.step)),
        saved_step(sign() * B * C::kSaved * H) {
    load_bias();
  }

  PRNN_DEVICE_MEMBER void run() {
    if (this->idle()) return;
    for (int tile = this->first_tile; tile < plan.tiles; tile += this->tile_step) {
      each([&](int j) { begin(states[j], j, tile); });
      if (T > 0) publish();
      each([&](int j) { prefetch(states[j], j, tile, 0); });
      for (int s = 0; s < T; ++s) {
        this->finish_sums();
        // What others wait for comes first: results and the inputs of the next step follow the publication. Not after
        // the last step, where the slot is that of the next tile's h0.
        each([&](int j) {
          step(states[j], j, s);
          if (s + 1 < T) put(states[j]);
        });
        if (s + 1 < T) publish();
        each([&](int j) {
          write(states[j], j, tile, s);
          prefetch(states[j], j, tile, s + 1);
        });
      }
      each([&](int j) { end(states[j], j, tile); });
    }
  }

 private:
  // Of an item.
  struct State {
    int published_at;
    const float* bias;
    int length;  // of the sample; negative where there is no unit or no sample
    const E* x;  // of the next step
    E* output;   // of this step, as is `saved`
    E* saved;
    E gates_x[G];  // of the next step
    bool reset;
    float h, c;
    E h_element, kept[C::kSaved + 1];
  };

  template <class Body>
  PRNN_DEVICE_MEMBER void each(const Body& body) const {
#pragma unroll
    for (int j = 0; j < kItems; ++j)
      if (this->has(j)) body(j);
  }
  PRNN_DEVICE_MEMBER int sign() const { return reverse ? -1 : 1; }

  PRNN_DEVICE_MEMBER void load_bias() const {
    const int first = this->block_group;
    for (int i = thread(); i < (this->last_group - first) * G * kGroup; i += kThreads) {
      const int unit = (first + i / (G * kGroup)) * kGroup + i % kGroup, q = i / kGroup % G;
      const bool present = pass.bias_hh && unit < H;
      shared_store(bias() + i, present ? to_float(static_cast<const E*>(pass.bias_hh)[q * H + unit]) : 0);
    }
    sync_block();
  }
  // [groups of the block][G][16]
  PRNN_DEVICE_MEMBER float* bias() const { return reinterpret_cast<float*>(this->shared + this->at.bias); }

  PRNN_DEVICE_MEMBER void begin(State& state, int j, int tile) const {
    const typename Base::Place place = this->place(j, tile);
    state.length = -1;
    state.published_at = this->published_at(j);
    state.bias = bias() + (this->item[j].group - this->block_group) * G * kGroup + lane() % 16;
    state.h = state.c = 0;
    if (place.there) {
      const int b = place.sample;
      state.length = static_cast<int>(Steps(pass).length(b));
      state.h = to_float(static_cast<const E*>(pass.h0)[int64_t(b) * H + place.unit]);
      if (C::kStates) state.c = pass.c0[int64_t(b) * H + place.unit];
      const int t = reverse && state.length > 0 ? state.length - 1 : 0;
      state.x = row_of<E>(pass.x, t, b) + place.unit;
      state.output = row_of<E>(pass.output, t, b) + place.unit;
      if (saves) state.saved = saved_at(t, place);
    }
    state.h_element = element_of<E>(state.h);
    put(state);
  }
  PRNN_DEVICE_MEMBER E* saved_at(int t, const typename Base::Place& place) const {
    return static_cast<E*>(pass.saved) + (int64_t(t) * B + place.sample) * C::kSaved * H + place.unit;
  }

  PRNN_DEVICE_MEMBER void put(const State& state) const {
    E published[1] = {state.h_element};
    if constexpr (kIsFloat<E>)
      if (plan.tf32) published[0] = round_to_tf32(state.h);
    exchange.put(state.published_at, published);
  }
  PRNN_DEVICE_MEMBER void publish() {
    Base::publish([&] { each([&](int j) { exchange.template clear<1>(states[j].published_at); }); });
  }

  PRNN_DEVICE_MEMBER void prefetch(State& state, int j, int tile, int s) const {
    if (s >= state.length) return;
    if (resets) state.reset = Steps(pass).reset(s, this->place(j, tile).sample);
#pragma unroll
    for (int q = 0; q < G; ++q) state.gates_x[q] = state.x[q * H];
    state.x += x_step;
  }

  PRNN_DEVICE_MEMBER void step(State& state, int j, int s) const {
    float gates_h[G], gates_x[G], kept[C::kSaved + 1] = {};
    this->total(gates_h, j);
    if (s < state.length) {
      const bool reset = resets && state.reset;
#pragma unroll
      for (int q = 0; q < G; ++q) {
        gates_x[q] = to_float(state.gates_x[q]);
        gates_h[q] = (reset ? 0 : gates_h[q]) + shared_load<float>(state.bias + q * kGroup);
      }
      if (reset) state.h = state.c = 0;
      const float h = C::template forward<float>(gates_x, gates_h, state.h, &state.c, nullptr, nullptr, kept);
      state.h_element = element_of<E>(h);
      state.h = to_float(state.h_element);
    }
#pragma unroll
    for (int i = 0; i < C::kSaved; ++i) state.kept[i] = element_of<E>(kept[i]);
  }

  // Zero past the sample's length, where the steps are in the order of time in reverse, too.
  PRNN_DEVICE_MEMBER void write(State& state, int j, int tile, int s) const {
    if (state.length < 0) return;
    if (s >= state.length) {
      const typename Base::Place place = this->place(j, tile);
      row_of<E>(pass.output, s, place.sample)[place.unit] = E{};
      if (saves) save(state, saved_at(s, place));
      return;
    }
    *state.output = state.h_element;
    state.output += output_step;
    if (!saves) return;
    save(state, state.saved);
    state.saved += saved_step;
  }
  PRNN_DEVICE_MEMBER void save(const State& state, E* to) const {
#pragma unroll
    for (int i = 0; i < C::kSaved; ++i) to[i * H] = state.kept[i];
  }

  PRNN_DEVICE_MEMBER void end(const State& state, int j, int tile) const {
    if (state.length < 0) return;
    const typename Base::Place place = this->place(j, tile);
    const int64_t at = int64_t(place.sample) * H + place.unit;
    static_cast<E*>(pass.h_n)[at] = state.h_element;
    if (C::kStates && pass.c_n) pass.c_n[at] = state.c;
  }

  const Forward& pass;
  const bool reverse, saves, resets;
  const int x_step, output_step, saved_step;  // from one step to the next, in elements; the launch checks that they fit
  State states[kItems];
};

}  // namespace prnn::cuda
