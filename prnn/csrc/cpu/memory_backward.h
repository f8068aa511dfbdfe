// Differentiable stacks and lists, backward. Included inside the namespace of an instruction set, after memory_run.h.

template <class E>
struct MemoryBackwardRun : MemoryRun<E> {
  using Run = MemoryRun<E>;
  using Run::b0, Run::b1, Run::lanes, Run::wide, Run::H, Run::R, Run::action, Run::copy, Run::pack;
  const MemoryBackward& pass;
  E *weight_hh, *weight_read, *weight_act;  // a row for each unit; of the last, for each action of each memory
  E *units, *reads, *acts;                  // gradients of one sample: of h, the reads, weight_act h
  E* next;                                  // the samples' gradients of h's pre-activation, one step later
  E *grads, *mean, *zeros;                  // gradients of the actions, a row for each; two rows
  E* ring[2];                               // gradients of the memories, a step apart

  MemoryBackwardRun(const MemoryBackward& pass, int64_t b0, int64_t b1, Arena& arena)
      : Run(pass, b0, b1, arena),
        pass(pass),
        weight_hh(arena.take<E>(pass.weight_hh ? pass.H * H : 0)),
        weight_read(arena.take<E>(pass.H * R)),
        weight_act(arena.take<E>((pass.A + 1) * pass.S * H)),
        units(arena.take<E>(H)),
        reads(arena.take<E>(R)),
        acts(arena.take<E>(Run::C)),
        next(arena.take<E>((b1 - b0) * H)),
        grads(arena.take<E>((pass.A + 1) * wide)),
        mean(arena.take<E>(wide)),
        zeros(arena.take<E>(wide)),
        ring{arena.take<E>(pass.N * wide), arena.take<E>(pass.N * wide)} {}

  void run() {
    prepare();
    Cells<E> after = place(pass.T);
    for (int64_t i = after.low; i < after.high; ++i) {
      const E* incoming = static_cast<const E*>(pass.grad_memory_n);
      copy(after.row(i), incoming ? Run::rows(incoming, i) : zeros);
    }
    for (int64_t t = pass.T - 1; t >= 0; --t) {
      const Cells<E> before = Run::saved(pass.saved, t), grad = place(t);
      for (int64_t a = 0; a <= pass.A; ++a)
        copy(action(a), Run::rows(static_cast<const E*>(pass.actions), t * (pass.A + 1) + a));
      if (pass.list)
        differentiate<3, true>(before, after, grad);
      else if (pass.A == 3)
        differentiate<3, false>(before, after, grad);
      else
        differentiate<2, false>(before, after, grad);
      through_choice();
      for (int64_t b = b0; b < b1; ++b) through_hidden(t, b, grad);
      after = grad;
    }
    if (!pass.grad_memory0) return;
    const Cells<E> begin = Run::cells(pass.grad_memory0, 0, pass.N);
    for (int64_t i = 0; i < pass.N; ++i) copy(begin.row(i), after.row(i));
  }

  void prepare() {
    Run::fill(Run::blank, pass.empty);
    Run::fill(zeros, 0);
    pack(next, b1 - b0, 0, H, [](int64_t, int64_t) { return E(0); });
    const int64_t S = pass.S;
    if (pass.weight_hh) pack(weight_hh, pass.H, pass.H, H, [&](int64_t i, int64_t j) { return Run::of_hh(i, j); });
    pack(weight_read, pass.H, pass.K * S, R, [&](int64_t i, int64_t r) { return Run::of_read(i, r); });
    pack(weight_act, (pass.A + 1) * S, pass.H, H, [&](int64_t c, int64_t j) { return Run::of_act(c, j); });
  }

  // The gradients of the memories after t steps. Cells out of range depend only on memory0.
  Cells<E> place(int64_t t) const { return {ring[t % 2], pass.low(t), pass.high(t), wide, zeros}; }

  E* grad_of(int64_t a) const { return grads + a * wide; }

  // From the gradients of the memories after a step to those of its actions, values and the preceding memories.
  template <int A, bool LIST>
  void differentiate(const Cells<E>& before, const Cells<E>& after, const Cells<E>& grad) {
    const E *a0 = action(0), *a1 = action(1), *a2 = action(2), *v = action(A);
    E* __restrict g0 = grad_of(0), * __restrict g1 = grad_of(1), * __restrict g2 = grad_of(2);
    for (int64_t a = 0; a <= A; ++a) copy(grad_of(a), zeros);
    for (int64_t i = after.low; i < after.high; ++i) {
      const bool head = i == pass.head;
      const E *up = head && !LIST ? v : before.at(i - 1), *down = before.at(i + 1);
      const E* third = head && LIST ? v : i < pass.head ? down : before.at(i);
      const E* incoming = after.row(i);
      for (int64_t l = 0; l < lanes; ++l) {
        g0[l] += incoming[l] * up[l];
        g1[l] += incoming[l] * down[l];
        if (A > 2) g2[l] += incoming[l] * third[l];
      }
    }
    const E *top = after.at(pass.head), *writes = LIST ? a2 : a0;
    E* value = grad_of(A);
    for (int64_t l = 0; l < lanes; ++l) value[l] = top[l] * writes[l];
    for (int64_t j = grad.low; j < grad.high; ++j) {
      const E *from_next = after.at(j + 1), *from_last = after.at(j - 1);
      // The third action keeps cells in place: all of a stack, those right of the head of a list. Those left of the
      // head it shifts by one to the left.
      const E* third = j > pass.head || (!LIST && j == pass.head) ? after.at(j) : j > 0 ? from_last : zeros;
      E* __restrict to = grad.row(j);
      for (int64_t l = 0; l < lanes; ++l) {
        E sum = a0[l] * from_next[l] + a1[l] * from_last[l];
        if (A > 2) sum += a2[l] * third[l];
        to[l] = sum;
      }
    }
  }

  // From the gradients of actions and values to those of the logits.
  void through_choice() {
    const int64_t A = pass.A;
    copy(mean, zeros);
    for (int64_t a = 0; a < A; ++a)
      for (int64_t l = 0; l < lanes; ++l) mean[l] += grad_of(a)[l] * action(a)[l];
    for (int64_t a = 0; a < A; ++a)
      for (int64_t l = 0; l < lanes; ++l) grad_of(a)[l] = (grad_of(a)[l] - mean[l]) * action(a)[l];
    for (int64_t l = 0; l < lanes; ++l) grad_of(A)[l] *= action(A)[l] * (1 - action(A)[l]);
  }

  // From the gradients of one sample's logits and of its h to those of its input and its reads.
  void through_hidden(int64_t t, int64_t b, const Cells<E>& grad) {
    const int64_t h = pass.H, S = pass.S, at = t * pass.B + b, lane = (b - b0) * S;
    const E* incoming = static_cast<const E*>(pass.grad_output);
    for (int64_t i = 0; i < H; ++i) units[i] = incoming && i < h ? incoming[at * h + i] : 0;
    E* grad_act = static_cast<E*>(pass.grad_act) + at * (pass.A + 1) * S;
    for (int64_t a = 0; a <= pass.A; ++a)
      for (int64_t s = 0; s < S; ++s) grad_act[Run::act_row(a, s)] = acts[a * S + s] = grad_of(a)[lane + s];
    add_rows(units, weight_act, acts, (pass.A + 1) * S, H);
    E* later = next + (b - b0) * H;
    if (pass.weight_hh) add_rows(units, weight_hh, later, h, H);
    const E* output = static_cast<const E*>(pass.output) + at * h;
    E* grad_gates_x = static_cast<E*>(pass.grad_gates_x) + at * h;
    for (int64_t i = 0; i < h; ++i) grad_gates_x[i] = later[i] = units[i] * output[i] * (1 - output[i]);
    for (int64_t r = 0; r < R; ++r) reads[r] = 0;
    add_rows(reads, weight_read, later, h, R);
    for (int64_t k = 0; k < pass.K; ++k) {
      if (pass.head + k >= grad.high) break;  // an empty cell was read
      E* cells = grad.row(pass.head + k) + lane;
      for (int64_t s = 0; s < S; ++s) cells[s] += reads[k * S + s];
    }
  }
};
