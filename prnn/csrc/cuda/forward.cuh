// The forward pass: gates_h = W_hh h, the cell, the exchange of the new h between all blocks of the team. Shapes as in
// layer_args.h.
#pragma once

#include "team.cuh"

namespace prnn::cuda {

template <class C, class E, int kShape>
class ForwardPass : Team<C, E, false, kShape> {
  using Base = Team<C, E, false, kShape>;
  using Base::B, Base::G, Base::H, Base::T, Base::exchange, Base::kItems, Base::plan;

 public:
  PRNN_DEVICE_MEMBER ForwardPass(const Plan& plan, const WaitLimit& limit, const Forward& pass, void* workspace)
      : Base(plan, limit, pass, workspace), pass(pass) {
    load_bias();
  }

  PRNN_DEVICE_MEMBER void run() {
    for (int tile = plan.team(block()) / plan.directions; tile < plan.tiles; tile += plan.teams / plan.directions) {
#pragma unroll
      for (int j = 0; j < kItems; ++j) begin(items[j], j, tile);
      if (T > 0) exchange.publish();
      for (int s = 0; s < T; ++s) {
        this->multiply();
#pragma unroll
        for (int j = 0; j < kItems; ++j)
          if (items[j].place.item()) step(items[j], j, s);
        if (s + 1 < T) exchange.publish();
      }
#pragma unroll
      for (int j = 0; j < kItems; ++j) end(items[j]);
    }
  }

 private:
  struct Item {
    typename Base::Place place;
    int length;
    Pair<E> x[G];  // of the next step
    bool reset;
    float h[2], c[2];
  };

  PRNN_DEVICE_MEMBER int time(const Item& item, int s) const { return pass.reverse ? item.length - 1 - s : s; }

  // The biases of this block's units, in shared memory.
  PRNN_DEVICE_MEMBER float* bias(int group, int q, int unit) const {
    const int first = plan.first_group(plan.rank(block()));
    return reinterpret_cast<float*>(this->shared + this->at.bias) + ((group - first) * G + q) * kGroup + unit;
  }
  PRNN_DEVICE_MEMBER void load_bias() const {
    const int first = plan.first_group(plan.rank(block()));
    for (int i = thread(); i < (this->last_group - first) * G * kGroup; i += kThreads) {
      const int group = first + i / (G * kGroup), q = i / kGroup % G, unit = group * kGroup + i % kGroup;
      const bool present = pass.bias_hh && unit < H;
      shared_store(bias(group, q, i % kGroup),
                   present ? to_float(static_cast<const E*>(pass.bias_hh)[q * H + unit]) : 0);
    }
    sync_block();
  }

  PRNN_DEVICE_MEMBER void begin(Item& item, int j, int tile) const {
    item.place = this->place(j, tile);
    item.length = 0;
    if (!item.place.item()) return;
    if (item.place.sample < B) item.length = static_cast<int>(Steps(pass).length(item.place.sample));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool own = this->there(item.place, half);
      const int64_t at = int64_t(item.place.sample) * H + item.place.unit(half);
      item.h[half] = own ? to_float(static_cast<const E*>(pass.h0)[at]) : 0;
      item.c[half] = C::kStates && own ? pass.c0[at] : 0;
    }
    put(item);
    prefetch(item, 0);
  }

  PRNN_DEVICE_MEMBER void put(const Item& item) const {
    exchange.put(item.place.group, item.place.column, published(item.h[0]), published(item.h[1]));
  }
  PRNN_DEVICE_MEMBER E published(float h) const {
    if constexpr (kIsFloat<E>) return plan.tf32 ? round_to_tf32(h) : h;
    return element_of<E>(h);
  }

  PRNN_DEVICE_MEMBER void prefetch(Item& item, int s) const {
    if (s >= item.length) return;
    const int t = time(item, s);
    const E* from = row_of<E>(pass.x, t, item.place.sample);
    item.reset = Steps(pass).reset(s, item.place.sample);
#pragma unroll
    for (int q = 0; q < G; ++q) item.x[q] = this->load(from + q * H, item.place);
  }

  PRNN_DEVICE_MEMBER void step(Item& item, int j, int s) {
    const bool active = s < item.length;
    float gates_h[2][G];
#pragma unroll
    for (int q = 0; q < G; ++q) {
      float sums[2];
      this->total(sums, j, q);
      gates_h[0][q] = sums[0], gates_h[1][q] = sums[1];
    }
    const int t = active ? time(item, s) : s;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float kept[C::kSaved + 1] = {};
      if (active && this->there(item.place, half)) {
        float gates_x[G];
#pragma unroll
        for (int q = 0; q < G; ++q) {
          gates_x[q] = to_float(item.x[q][half]);
          gates_h[half][q] = (item.reset ? 0 : gates_h[half][q]) +
                             shared_load<float>(bias(item.place.group, q, lane() / 4 + 8 * half));
        }
        if (item.reset) item.h[half] = item.c[half] = 0;
        const float h =
            C::template forward<float>(gates_x, gates_h[half], item.h[half], &item.c[half], nullptr, nullptr, kept);
        item.h[half] = to_float(element_of<E>(h));
      }
      write(item, half, t, active ? item.h[half] : 0, kept);
    }
    // Not after the last step, where the buffer is that of the next tile's h0.
    if (s + 1 < T) put(item);
    prefetch(item, s + 1);
  }

  PRNN_DEVICE_MEMBER void write(const Item& item, int half, int t, float h, const float* kept) const {
    if (!this->there(item.place, half)) return;
    const int unit = item.place.unit(half);
    row_of<E>(pass.output, t, item.place.sample)[unit] = element_of<E>(h);
    if (C::kSaved == 0 || !pass.saved) return;
    E* to = static_cast<E*>(pass.saved) + (int64_t(t) * B + item.place.sample) * C::kSaved * H + unit;
#pragma unroll
    for (int i = 0; i < C::kSaved; ++i) to[i * H] = element_of<E>(kept[i]);
  }

  PRNN_DEVICE_MEMBER void end(const Item& item) const {
    if (!item.place.item()) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!this->there(item.place, half)) continue;
      const int64_t at = int64_t(item.place.sample) * H + item.place.unit(half);
      static_cast<E*>(pass.h_n)[at] = element_of<E>(item.h[half]);
      if (C::kStates && pass.c_n) pass.c_n[at] = item.c[half];
    }
  }

  const Forward& pass;
  Item items[kItems];
};

}  // namespace prnn::cuda
