// Differentiable stacks and lists on the GPU, backward, from the last step to the first. The weights' gradients are
// matmuls over all steps at once, afterwards, by torch.
#pragma once

#include "memory_block.cuh"

namespace prnn::cuda {

template <class E>
class MemoryBackwardPass : MemoryBlock<E> {
  using Base = MemoryBlock<E>;
  using Base::A, Base::H, Base::K, Base::S, Base::act_row, Base::cell, Base::each_cell, Base::each_row, Base::fetch,
      Base::first, Base::get, Base::head, Base::kept, Base::load, Base::narrow, Base::plan, Base::product, Base::put,
      Base::ring, Base::row, Base::second, Base::state, Base::threads, Base::vector, Base::wide;

 public:
  PRNN_DEVICE_MEMBER MemoryBackwardPass(const MemoryPlan& plan, const MemoryBackward& pass)
      : MemoryBackwardPass(plan, pass, MemoryShared(pass, true)) {}

  // Three barriers a step: gradients of the logits, of the units' pre-activations, of the reads. The state is the
  // second.
  PRNN_DEVICE_MEMBER void run() const {
    for (int64_t b = block(); b < pass.B; b += plan.blocks) {
      begin(b);
      for (int64_t t = pass.T - 1; t >= 0; --t) {
        if (t > 0) prefetch(t - 1, b);
        for (int s = warp(); s < S; s += plan.warps) differentiate(t, b, s);
        sync_block();
        through_hidden(t, b);
        sync_block();
        through_reading(t);
        copy_async_wait();
        sync_block();
      }
      end(b);
      sync_block();
    }
  }

 private:
  PRNN_DEVICE_MEMBER MemoryBackwardPass(const MemoryPlan& plan, const MemoryBackward& pass, const MemoryShared& at)
      : Base(plan, pass, at),
        pass(pass),
        logits((A + 1) * S),
        actions(int(at.kept_actions)),
        output(int(at.kept_output)),
        grad_output(int(at.kept_grad)) {
    load(pass.weight_act, logits, H, first, 1, wide);
    if (pass.weight_hh) load(pass.weight_hh, H, H, first + logits, 1, wide);
    load(pass.weight_read, H, S * K, second, 1, narrow);
  }

  PRNN_DEVICE_MEMBER int low(int64_t t) const { return int(pass.low(t)); }
  PRNN_DEVICE_MEMBER int high(int64_t t) const { return int(pass.high(t)); }

  PRNN_DEVICE_MEMBER void prefetch(int64_t t, int64_t b) const {
    const int to = kept(t);
    const E* saved = static_cast<const E*>(pass.saved) + pass.saved_before(t);
    each_cell(low(t), high(t),
              [&](int i, int s) { fetch(to + s * row + i, saved + ((i - low(t)) * pass.B + b) * S + s); });
    const E* taken = static_cast<const E*>(pass.actions) + (t * (A + 1) * pass.B + b) * S;
    each_cell(0, A + 1, [&](int a, int s) { fetch(to + actions + a * S + s, taken + a * pass.B * S + s); });
    const int64_t unit = (t * pass.B + b) * H;
    for (int i = thread(); i < H; i += threads()) {
      fetch(to + output + i, static_cast<const E*>(pass.output) + unit + i);
      if (pass.grad_output) fetch(to + grad_output + i, static_cast<const E*>(pass.grad_output) + unit + i);
    }
  }

  PRNN_DEVICE_MEMBER void begin(int64_t b) const {
    if (pass.T > 0) prefetch(pass.T - 1, b);
    const E* given = static_cast<const E*>(pass.grad_memory_n);
    each_cell(low(pass.T), high(pass.T),
              [&](int i, int s) { put(ring(pass.T, s) + i, given ? given[(i * pass.B + b) * S + s] : E(0)); });
    for (int i = thread(); pass.weight_hh && i < H; i += threads()) put(state(pass.T) + i, 0);
    copy_async_wait();
    sync_block();
  }

  // From the gradients of memory s after the step to those of its logits and of the preceding memory; by a warp.
  PRNN_DEVICE_MEMBER void differentiate(int64_t t, int64_t b, int s) const {
    const int before = kept(t) + s * row, after = ring(t + 1, s), to = ring(t, s);
    const int from = low(t), end = high(t), after_from = low(t + 1), after_end = high(t + 1);
    const E empty = static_cast<E>(pass.empty);
    const auto old = [&](int i) { return cell(before, from, end, i, empty); };
    const auto grad = [&](int i) { return cell(after, after_from, after_end, i, 0); };
    E a[4] = {}, sums[3] = {};
#pragma unroll
    for (int q = 0; q < 4; ++q)
      if (q != 2 || A > 2) a[q] = get(kept(t) + actions + (q == 3 ? A : q) * S + s);
    for (int i = after_from + lane(); i < after_end; i += 32) {
      const bool written = i == head;
      const E given = get(after + i), down = old(i + 1);
      sums[0] += given * (written && !pass.list ? a[3] : old(i - 1));
      sums[1] += given * down;
      if (A > 2) sums[2] += given * (written && pass.list ? a[3] : i < head ? down : old(i));
    }
    for (int j = from + lane(); j < end; j += 32) {
      E sum = a[0] * grad(j + 1) + a[1] * grad(j - 1);
      // The third action keeps cells in place, but shifts those of a list up to the head by one to the left.
      if (A > 2) sum += a[2] * grad(pass.list && j <= head ? j - 1 : j);
      put(to + j, sum);
    }
    this->total(sums);
    const E value = grad(head) * (pass.list ? a[2] : a[0]);
    const E mean = sums[0] * a[0] + sums[1] * a[1] + sums[2] * a[2];
    if (lane() != 0) return;
    E* grad_act = static_cast<E*>(pass.grad_act) + (t * pass.B + b) * logits;
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      if (q == 2 && A == 2) continue;
      const E gradient = q == 3 ? value * a[3] * (1 - a[3]) : (sums[q < 3 ? q : 0] - mean) * a[q];
      grad_act[act_row(q, s)] = gradient;
      put(vector + act_row(q, s), gradient);
    }
  }

  PRNN_DEVICE_MEMBER void through_hidden(int64_t t, int64_t b) const {
    E* grad_gates_x = static_cast<E*>(pass.grad_gates_x) + (t * pass.B + b) * H;
    const auto share = [&](int i) {
      const E sum = product(first + i * wide, vector, logits);
      return pass.weight_hh ? sum + product(first + i * wide + logits, state(t + 1), H) : sum;
    };
    each_row(H, share, [&](int i, E sum) {
      const E unit = get(kept(t) + output + i);
      if (pass.grad_output) sum += get(kept(t) + grad_output + i);
      const E gradient = sum * unit * (1 - unit);
      put(state(t) + i, gradient);
      grad_gates_x[i] = gradient;
    });
  }

  PRNN_DEVICE_MEMBER void through_reading(int64_t t) const {
    const auto share = [&](int r) { return product(second + r * narrow, state(t), H); };
    each_row(S * K, share, [&](int r, E sum) {
      const int i = head + r % K, at = ring(t, r / K) + i;
      if (i < high(t)) put(at, get(at) + sum);  // else an empty cell was read
    });
  }

  PRNN_DEVICE_MEMBER void end(int64_t b) const {
    if (!pass.grad_memory0) return;
    E* to = static_cast<E*>(pass.grad_memory0);
    each_cell(0, int(pass.N), [&](int i, int s) { to[(i * pass.B + b) * S + s] = get(ring(0, s) + i); });
  }

  const MemoryBackward& pass;
  const int logits, actions, output, grad_output;  // the last three: within what is kept of a step
};

}  // namespace prnn::cuda
