// The forward pass: gates_h = W_hh h, the cell, the exchange of the new h between all blocks of the team. Shapes as in
// layer_args.h.
#pragma once

#include "team.cuh"

namespace prnn::cuda {

template <class C, class E, bool kGrid, int kShape>
class ForwardPass : Team<C, E, false, kGrid, kShape> {
  using Base = Team<C, E, false, kGrid, kShape>;
  using Base::B, Base::G, Base::H, Base::T, Base::exchange, Base::plan;

 public:
  PRNN_DEVICE_MEMBER ForwardPass(const Plan& plan, const WaitLimit& limit, const Forward& pass, void* workspace)
      : Base(plan, limit, pass, workspace),
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
    for (int tile = plan.team(block()) / plan.directions; tile < plan.tiles; tile += plan.teams / plan.directions) {
      begin(tile);
      if (T > 0) publish();
      prefetch(tile, 0);
      for (int s = 0; s < T; ++s) {
        this->multiply();
        // What others wait for comes first: results and the inputs of the next step follow the publication. Not after
        // the last step, where the slot is that of the next tile's h0.
        if (this->has_item()) {
          step(s);
          if (s + 1 < T) put();
        }
        if (s + 1 < T) publish();
        if (this->has_item()) {
          write(tile, s);
          prefetch(tile, s + 1);
        }
      }
      end(tile);
    }
  }

 private:
  struct Item {
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

  PRNN_DEVICE_MEMBER int sign() const { return reverse ? -1 : 1; }

  PRNN_DEVICE_MEMBER void load_bias() const {
    const int first = plan.first_group(plan.rank(block()));
    for (int i = thread(); i < (this->last_group - first) * G * kGroup; i += kThreads) {
      const int unit = (first + i / (G * kGroup)) * kGroup + i % kGroup, q = i / kGroup % G;
      const bool present = pass.bias_hh && unit < H;
      shared_store(bias() + i, present ? to_float(static_cast<const E*>(pass.bias_hh)[q * H + unit]) : 0);
    }
    sync_block();
  }
  // [groups of the block][G][16]
  PRNN_DEVICE_MEMBER float* bias() const { return reinterpret_cast<float*>(this->shared + this->at.bias); }

  PRNN_DEVICE_MEMBER void begin(int tile) {
    const typename Base::Place place = this->place(tile);
    item.length = -1;
    if (!this->has_item()) return;
    item.published_at = this->published_at(1);
    item.bias = bias() + (this->group - plan.first_group(plan.rank(block()))) * G * kGroup + lane() % 16;
    item.h = item.c = 0;
    if (place.there) {
      const int b = place.sample;
      item.length = static_cast<int>(Steps(pass).length(b));
      item.h = to_float(static_cast<const E*>(pass.h0)[int64_t(b) * H + place.unit]);
      if (C::kStates) item.c = pass.c0[int64_t(b) * H + place.unit];
      const int t = reverse && item.length > 0 ? item.length - 1 : 0;
      item.x = row_of<E>(pass.x, t, b) + place.unit;
      item.output = row_of<E>(pass.output, t, b) + place.unit;
      if (saves) item.saved = saved_at(t, place);
    }
    item.h_element = element_of<E>(item.h);
    put();
  }
  PRNN_DEVICE_MEMBER E* saved_at(int t, const typename Base::Place& place) const {
    return static_cast<E*>(pass.saved) + (int64_t(t) * B + place.sample) * C::kSaved * H + place.unit;
  }

  PRNN_DEVICE_MEMBER void put() const {
    E published[1] = {item.h_element};
    if constexpr (kIsFloat<E>)
      if (plan.tf32) published[0] = round_to_tf32(item.h);
    exchange.put(item.published_at, published);
  }
  PRNN_DEVICE_MEMBER void publish() {
    exchange.publish([&] {
      if (this->has_item()) exchange.template clear<1>(item.published_at);
    });
  }

  PRNN_DEVICE_MEMBER void prefetch(int tile, int s) {
    if (s >= item.length) return;
    if (resets) item.reset = Steps(pass).reset(s, this->place(tile).sample);
#pragma unroll
    for (int q = 0; q < G; ++q) item.gates_x[q] = item.x[q * H];
    item.x += x_step;
  }

  PRNN_DEVICE_MEMBER void step(int s) {
    float gates_h[G], gates_x[G], kept[C::kSaved + 1] = {};
    this->total(gates_h);
    if (s < item.length) {
      const bool reset = resets && item.reset;
#pragma unroll
      for (int q = 0; q < G; ++q) {
        gates_x[q] = to_float(item.gates_x[q]);
        gates_h[q] = (reset ? 0 : gates_h[q]) + shared_load<float>(item.bias + q * kGroup);
      }
      if (reset) item.h = item.c = 0;
      const float h = C::template forward<float>(gates_x, gates_h, item.h, &item.c, nullptr, nullptr, kept);
      item.h_element = element_of<E>(h);
      item.h = to_float(item.h_element);
    }
#pragma unroll
    for (int i = 0; i < C::kSaved; ++i) item.kept[i] = element_of<E>(kept[i]);
  }

  // Zero past the sample's length, where the steps are in the order of time in reverse, too.
  PRNN_DEVICE_MEMBER void write(int tile, int s) {
    if (item.length < 0) return;
    if (s >= item.length) {
      const typename Base::Place place = this->place(tile);
      row_of<E>(pass.output, s, place.sample)[place.unit] = E{};
      if (saves) save(saved_at(s, place));
      return;
    }
    *item.output = item.h_element;
    item.output += output_step;
    if (!saves) return;
    save(item.saved);
    item.saved += saved_step;
  }
  PRNN_DEVICE_MEMBER void save(E* to) const {
#pragma unroll
    for (int i = 0; i < C::kSaved; ++i) to[i * H] = item.kept[i];
  }

  PRNN_DEVICE_MEMBER void end(int tile) const {
    if (item.length < 0) return;
    const typename Base::Place place = this->place(tile);
    const int64_t at = int64_t(place.sample) * H + place.unit;
    static_cast<E*>(pass.h_n)[at] = item.h_element;
    if (C::kStates && pass.c_n) pass.c_n[at] = item.c;
  }

  const Forward& pass;
  const bool reverse, saves, resets;
  const int x_step, output_step, saved_step;  // from one step to the next, in elements; the launch checks that they fit
  Item item;
};

}  // namespace prnn::cuda
