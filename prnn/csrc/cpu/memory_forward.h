// Differentiable stacks and lists, forward. Included inside the namespace of an instruction set, after memory_run.h.

template <class E>
struct MemoryForwardRun : MemoryRun<E> {
  using Run = MemoryRun<E>;
  using Run::b0, Run::b1, Run::lanes, Run::wide, Run::H, Run::C, Run::action, Run::copy, Run::pack;
  const MemoryForward& pass;
  E *weight_hh, *weight_read, *weight_act;  // transposed: a row for each unit, read, unit
  E *units, *logits, *top;                  // of one sample; a row of lanes
  E *last, *ring[2];                        // the samples' h; the memories, where they are not saved

  MemoryForwardRun(const MemoryForward& pass, int64_t b0, int64_t b1, Arena& arena)
      : Run(pass, b0, b1, arena),
        pass(pass),
        weight_hh(arena.take<E>(pass.weight_hh ? pass.H * H : 0)),
        weight_read(arena.take<E>(pass.K * pass.S * H)),
        weight_act(arena.take<E>(pass.H * C)),
        units(arena.take<E>(H)),
        logits(arena.take<E>(C)),
        top(arena.take<E>(wide)),
        last(arena.take<E>((b1 - b0) * H)),
        ring{arena.take<E>(pass.N * wide), arena.take<E>(pass.N * wide)} {}

  void run() {
    prepare();
    Cells<E> before =
        Run::cells(static_cast<const E*>(pass.memory0) + pass.first * pass.B * pass.S, pass.first, pass.last);
    if (pass.saved) {
      const Cells<E> kept = Run::saved(pass.saved, 0);
      for (int64_t i = kept.low; i < kept.high; ++i) copy(kept.row(i), before.row(i));
    }
    for (int64_t t = 0; t < pass.T; ++t) {
      const Cells<E> after = place(t + 1);
      for (int64_t b = b0; b < b1; ++b) hidden(t, b, before);
      choose();
      for (int64_t a = 0; pass.actions && a <= pass.A; ++a)
        copy(Run::rows(static_cast<E*>(pass.actions), t * (pass.A + 1) + a), action(a));
      if (pass.list)
        update<3, true>(before, after);
      else if (pass.A == 3)
        update<3, false>(before, after);
      else
        update<2, false>(before, after);
      before = after;
    }
    const Cells<E> end = Run::cells(pass.memory_n, 0, pass.N);
    for (int64_t i = 0; i < pass.N; ++i) copy(end.row(i), before.at(i));
  }

  void prepare() {
    Run::fill(Run::blank, pass.empty);
    const int64_t S = pass.S;
    if (pass.weight_hh) {
      pack(weight_hh, pass.H, pass.H, H, [&](int64_t j, int64_t i) { return Run::of_hh(i, j); });
      const E* h0 = static_cast<const E*>(pass.h0) + b0 * pass.H;
      pack(last, b1 - b0, pass.H, H, [&](int64_t b, int64_t i) { return h0[b * pass.H + i]; });
    }
    pack(weight_read, pass.K * S, pass.H, H, [&](int64_t r, int64_t i) { return Run::of_read(i, r); });
    pack(weight_act, pass.H, (pass.A + 1) * S, C, [&](int64_t j, int64_t c) { return Run::of_act(c, j); });
  }

  // The destination of the memories after t steps.
  Cells<E> place(int64_t t) const {
    if (pass.saved && t < pass.T) return Run::saved(pass.saved, t);
    return {ring[t % 2], pass.low(t), pass.high(t), wide, Run::blank};
  }

  // h of one sample, and its logits.
  void hidden(int64_t t, int64_t b, const Cells<E>& before) {
    const int64_t h = pass.H, S = pass.S, K = pass.K, at = t * pass.B + b, lane = (b - b0) * S;
    const E* x = static_cast<const E*>(pass.gates_x) + at * h;
    E* previous = last + (b - b0) * H;
    for (int64_t i = 0; i < H; ++i) units[i] = i < h ? x[i] : 0;
    if (pass.weight_hh) add_rows(units, weight_hh, previous, h, H);
    for (int64_t k = 0; k < K; ++k) {
      const E* cells = before.at(pass.head + k) + lane;
      add_rows(units, weight_read + k * S * H, cells, S, H);
      E* reads = static_cast<E*>(pass.reads) + at * S * K + k;
      for (int64_t s = 0; pass.reads && s < S; ++s) reads[s * K] = cells[s];
    }
    sigmoid_all(units, h);
    E* output = static_cast<E*>(pass.output) + at * h;
    for (int64_t i = 0; i < h; ++i) output[i] = previous[i] = units[i];
    for (int64_t c = 0; c < C; ++c) logits[c] = 0;
    add_rows(logits, weight_act, units, h, C);
    for (int64_t a = 0; a <= pass.A; ++a)
      for (int64_t s = 0; s < S; ++s) action(a)[lane + s] = logits[a * S + s];
  }

  // From logits to actions and values, all lanes.
  void choose() {
    const int64_t A = pass.A;
    copy(top, action(0));
    for (int64_t a = 1; a < A; ++a) {
      const E* row = action(a);
      for (int64_t l = 0; l < lanes; ++l) top[l] = row[l] > top[l] ? row[l] : top[l];
    }
    pass.rounds ? round() : soften();
    sigmoid_all(action(A), lanes);
  }

  void soften() {
    for (int64_t a = 0; a < pass.A; ++a) {
      E* row = action(a);
      for (int64_t l = 0; l < lanes; ++l) row[l] -= top[l];
      exp_all(row, lanes);
    }
    const E *a0 = action(0), *a1 = action(1), *a2 = action(2);
    for (int64_t l = 0; l < lanes; ++l) top[l] = 1 / (a0[l] + a1[l] + (pass.A > 2 ? a2[l] : 0));
    for (int64_t a = 0; a < pass.A; ++a) {
      E* row = action(a);
      for (int64_t l = 0; l < lanes; ++l) row[l] *= top[l];
    }
  }

  // Argmax: the first of the most probable actions becomes 1, the others 0.
  void round() {
    for (int64_t l = 0; l < lanes; ++l) {
      bool open = true;
      for (int64_t a = 0; a < pass.A; ++a) {
        const bool taken = open && action(a)[l] == top[l];
        open = open && !taken;
        action(a)[l] = taken;
      }
    }
  }

  template <int A, bool LIST>
  void update(const Cells<E>& before, const Cells<E>& after) {
    const E *a0 = action(0), *a1 = action(1), *a2 = action(2), *v = action(A);
    for (int64_t i = after.low; i < after.high; ++i) {
      const bool head = i == pass.head;
      const E *up = head && !LIST ? v : before.at(i - 1), *down = before.at(i + 1);
      const E* third = head && LIST ? v : i < pass.head ? down : before.at(i);
      E* __restrict to = after.row(i);
      for (int64_t l = 0; l < lanes; ++l) {
        E cell = a0[l] * up[l] + a1[l] * down[l];
        if (A > 2) cell += a2[l] * third[l];
        to[l] = cell;
      }
    }
  }
};
