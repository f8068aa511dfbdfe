// Differentiable stacks and lists on the GPU, forward.
#pragma once

#include "memory_block.cuh"

namespace prnn::cuda {

template <class E>
class MemoryForwardPass : MemoryBlock<E> {
  using Base = MemoryBlock<E>;
  using Base::A, Base::H, Base::K, Base::N, Base::S, Base::cell, Base::each_cell, Base::each_row, Base::fetch,
      Base::first, Base::get, Base::head, Base::kept, Base::load, Base::narrow, Base::plan, Base::product, Base::put,
      Base::ring, Base::second, Base::state, Base::threads, Base::vector, Base::wide;

 public:
  PRNN_DEVICE_MEMBER MemoryForwardPass(const MemoryPlan& plan, const MemoryForward& pass)
      : Base(plan, pass, MemoryShared(pass, false)), pass(pass), reads(S * K), empty(static_cast<E>(pass.empty)) {
    load(pass.weight_read, H, reads, first, wide, 1);
    if (pass.weight_hh) load(pass.weight_hh, H, H, first + reads, wide, 1);
    load(pass.weight_act, (A + 1) * S, H, second, narrow, 1);
  }

  // Two barriers a step. Between them the state and the cells are written, both double-buffered.
  PRNN_DEVICE_MEMBER void run() const {
    for (int64_t b = block(); b < pass.B; b += plan.blocks) {
      begin(b);
      for (int64_t t = 0; t < pass.T; ++t) {
        if (t + 1 < pass.T) prefetch(t + 1, b);
        if (pass.reads) save(t, b);  // `saved` may be empty, and is null then
        hidden(t, b);
        sync_block();
        for (int s = warp(); s < S; s += plan.warps) act(t, b, s);
        copy_async_wait();
        sync_block();
      }
      end(b);
      sync_block();
    }
  }

 private:
  PRNN_DEVICE_MEMBER int low(int64_t t) const { return int(pass.low(t)); }
  PRNN_DEVICE_MEMBER int high(int64_t t) const { return int(pass.high(t)); }

  PRNN_DEVICE_MEMBER void prefetch(int64_t t, int64_t b) const {
    const E* x = static_cast<const E*>(pass.gates_x) + (t * pass.B + b) * H;
    for (int i = thread(); i < H; i += threads()) fetch(kept(t) + i, x + i);
  }

  PRNN_DEVICE_MEMBER void begin(int64_t b) const {
    const E* from = static_cast<const E*>(pass.memory0);
    const auto given = [&](int i, int s) { return from[(i * pass.B + b) * S + s]; };
    if (pass.T > 0) prefetch(0, b);
    each_cell(low(0), high(0), [&](int i, int s) { put(ring(0, s) + i, given(i, s)); });
    each_cell(head, head + K,
              [&](int i, int s) { put(vector + s * K + i - head, i >= low(0) && i < high(0) ? given(i, s) : empty); });
    for (int i = thread(); pass.weight_hh && i < H; i += threads())
      put(state(0) + i, static_cast<const E*>(pass.h0)[b * H + i]);
    copy_async_wait();
    sync_block();
  }

  // Saves the preceding memories for the backward pass.
  PRNN_DEVICE_MEMBER void save(int64_t t, int64_t b) const {
    E* to = static_cast<E*>(pass.saved) + pass.saved_before(t);
    each_cell(low(t), high(t), [&](int i, int s) { to[((i - low(t)) * pass.B + b) * S + s] = get(ring(t, s) + i); });
    E* read = static_cast<E*>(pass.reads) + (t * pass.B + b) * reads;
    for (int r = thread(); r < reads; r += threads()) read[r] = get(vector + r);
  }

  PRNN_DEVICE_MEMBER void hidden(int64_t t, int64_t b) const {
    E* output = static_cast<E*>(pass.output) + (t * pass.B + b) * H;
    const auto share = [&](int i) {
      const E sum = product(first + i * wide, vector, reads);
      return pass.weight_hh ? sum + product(first + i * wide + reads, state(t), H) : sum;
    };
    each_row(H, share, [&](int i, E sum) {
      const E unit = sigmoid(get(kept(t) + i) + sum);
      put(state(t + 1) + i, unit);
      output[i] = unit;
    });
  }

  // The update of memory s; by a warp.
  PRNN_DEVICE_MEMBER void act(int64_t t, int64_t b, int s) const {
    E a[4] = {};  // of each action, and of the value: the logit, then the weight
    for (int j = lane(); j < H; j += 32) {
      const E unit = get(state(t + 1) + j);
#pragma unroll
      for (int q = 0; q < 4; ++q)
        if (q != 2 || A > 2) a[q] += get(second + this->act_row(q, s) * narrow + j) * unit;
    }
    this->total(a);
    choose(a);
    E* to = static_cast<E*>(pass.actions) + (t * (A + 1) * pass.B + b) * S + s;
    if (pass.actions && lane() == 0) {
#pragma unroll
      for (int q = 0; q < 4; ++q)
        if (q != 2 || A > 2) to[(q == 3 ? A : q) * pass.B * S] = a[q];
    }
    update(t, s, a);
  }

  PRNN_DEVICE_MEMBER void choose(E (&a)[4]) const {
    E top = a[0] < a[1] ? a[1] : a[0];
    if (A > 2 && top < a[2]) top = a[2];
    if (pass.rounds) {  // argmax: the first of the most probable
      a[0] = a[0] == top;
      a[1] = a[0] == 0 && a[1] == top;
      a[2] = A > 2 && a[0] == 0 && a[1] == 0;
    } else {
      a[0] = exponential(a[0] - top), a[1] = exponential(a[1] - top);
      a[2] = A > 2 ? exponential(a[2] - top) : 0;
      const E scale = 1 / (a[0] + a[1] + a[2]);
      a[0] *= scale, a[1] *= scale, a[2] *= scale;
    }
    a[3] = sigmoid(a[3]);
  }

  PRNN_DEVICE_MEMBER void update(int64_t t, int s, const E (&a)[4]) const {
    const int before = ring(t, s), after = ring(t + 1, s), from = low(t), to = high(t);
    const auto old = [&](int i) { return cell(before, from, to, i, empty); };
    for (int i = low(t + 1) + lane(); i < high(t + 1); i += 32) {
      const bool written = i == head;
      const E down = old(i + 1);
      E sum = a[0] * (written && !pass.list ? a[3] : old(i - 1)) + a[1] * down;
      if (A > 2) sum += a[2] * (written && pass.list ? a[3] : i < head ? down : old(i));
      put(after + i, sum);
      if (i >= head && i < head + K) put(vector + s * K + i - head, sum);
    }
  }

  PRNN_DEVICE_MEMBER void end(int64_t b) const {
    E* to = static_cast<E*>(pass.memory_n);
    each_cell(0, N, [&](int i, int s) {
      to[(i * pass.B + b) * S + s] = cell(ring(pass.T, s), low(pass.T), high(pass.T), i, empty);
    });
  }

  const MemoryForward& pass;
  const int reads;
  const E empty;
};

}  // namespace prnn::cuda
