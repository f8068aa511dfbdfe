// The forward pass. Included inside the namespace of an instruction set, after shape.h.
// Shapes: T time steps, B batch, I input size, H hidden size, G gates; V = panels_of(H) vectors, P = V * kLanes.

// Packed column g * P + unit holds row g * H + unit of a weight or bias.
static inline int64_t gate_row(int64_t column, int64_t H, int64_t P) { return column / P * H + column % P; }

// The row of a weight that a packed column holds; null for padding. Its rows, `columns` long, are packed in blocks of
// H, a gate or a head of one, as P columns. A struct outside ForwardRun: with a lambda, pack() would be compiled anew
// for each cell and matrix.
template <class E>
struct GateRows {
  const E* weight;
  int64_t H, P, columns;
  const E* operator()(int64_t column) const {
    return column % P < H ? weight + gate_row(column, H, P) * columns : nullptr;
  }
};

template <class E, class Op>
class ForwardRun {
 public:
  using Element = typename Op::Element;
  using Word = typename Op::Word;

  ForwardRun(const Forward& pass, const Plan& plan, int64_t members, Arena& arena, const Pointwise& pointwise)
      : pass(pass),
        plan(plan),
        pointwise(pointwise),
        cell(cell_row(pass)),
        blocks(pass),
        spiking(pass.T * pass.B >= kWorthCopy && has_spikes<Op>(pass, blocks)),
        steps(pass),
        G(cell.gates),
        B(pass.B),
        I(pass.weight_ih ? pass.I : 0),
        H(pass.H),
        V(panels_of(H)),
        P(V * kLanes),
        narrow(I > 0 && I <= kNarrow) {
    packed_hh = arena.take<Word>(G * blocks.heads * blocks.panels * panel_of(words_of<Op>(blocks.K)));
    packed_ih = arena.take<Word>(narrow ? 0 : G * V * panel_of(words_of<Op>(I)));
    weight_x = arena.take<float>(narrow ? I * G * P : 0);
    diagonal = arena.take<float>(blocks.diagonal() ? G * P : 0);
    rows_hh = arena.take<float>(spiking ? H * G * P : 0);
    units = arena.take<int32_t>(spiking ? members * H : 0);
    finite = arena.take<bool>(spiking ? members : 0);
    bias_x = arena.take<float>(G * P);
    bias_h = arena.take<float>(G * P);
    zeros = arena.take<Element>(P);
    state[0] = arena.take<Element>(B * P);
    state[1] = arena.take<Element>(B * P);
    states = arena.take<float>(cell.states * B * P);
    params = arena.take<float>(cell.params * P);
    gates_h = arena.take<float>(B * G * P);
    gates_x = arena.take<float>(narrow ? 0 : plan.chunk * B * G * P);
    rows = arena.take<const Word*>(members * most_rows());
    out = arena.take<float*>(members * most_rows());
    init = arena.take<const float*>(members * most_rows());
    samples = arena.take<ForwardSample>(members * most_samples());
    converted = arena.take<Element>(kConverts ? members * most_rows() * I : 0);
  }

  void run(Member& member) {
    const Part part(plan, member, B, V);
    prepare(part, member);
    member.meet_all();
    begin(part);
    member.meet(part.first, part.last);
    rows += member.rank * most_rows(), out += member.rank * most_rows(), init += member.rank * most_rows();
    samples += member.rank * most_samples();
    converted += kConverts ? member.rank * most_rows() * I : 0;
    units += spiking ? member.rank * H : 0;
    skips_zeros = spiking;
    for (int64_t rank = 0; spiking && rank < member.size; ++rank) skips_zeros = skips_zeros && finite[rank];
    for (int64_t s = 0; s < pass.T; ++s) {
      if (s % plan.chunk == 0) {
        member.hand_over(s);
        member.await(s + plan.chunk < pass.T ? s + plan.chunk : pass.T);
        if (!narrow) project(part, s);
      }
      recur(part, s);
      activate(part, s);
      member.meet(part.first, part.last);
    }
    member.hand_over(pass.T);
  }

 private:
  static constexpr bool kConverts = sizeof(E) != sizeof(Element);  // x cannot be multiplied in place

  // Of a chunk of the largest batch group.
  int64_t most_rows() const { return plan.chunk * most_samples(); }
  int64_t most_samples() const { return (B + plan.batch_groups - 1) / plan.batch_groups; }

  // Weights and biases, packed by all members: each has those of its units, which are in its caches then.
  void prepare(const Part& part, const Member& member) {
    const int64_t K = blocks.K;
    const GateRows<E> rows_of_hh{static_cast<const E*>(pass.weight_hh), K, blocks.panels * kLanes, K};
    each_share(part, member, blocks.heads * blocks.panels, [&](int64_t begin, int64_t end) {
      pack<Op>(packed_hh, begin, end, K, rows_of_hh);
      if (spiking) copy_rows(begin, end);
    });
    if (spiking) {
      int64_t begin, end;
      Member::share(G * H * H, member.rank, member.size, begin, end);
      finite[member.rank] = all_finite(static_cast<const E*>(pass.weight_hh), begin, end);
    }
    each_share(part, member, V, [&](int64_t begin, int64_t end) { prepare_input(begin, end); });
    if (member.rank != 0) return;
    convert(zeros, static_cast<const float*>(nullptr), P), copy_params(params, pass, P);
    if (blocks.diagonal()) copy_diagonal<E>(diagonal, pass.weight_hh, G, H, P);
  }

  // Calls use(begin, end) for ranges of panels, of which each gate has `panels`: of a member's own units as far as
  // panels are those of units (of small heads they are not), which it shares with the members of other samples.
  template <class Use>
  void each_share(const Part& part, const Member& member, int64_t panels, Use use) {
    const bool own = panels == V;
    const int64_t first = own ? part.v0 : 0, count = own ? part.v1 - part.v0 : panels;
    for (int64_t g = 0; g < G; ++g) {
      int64_t begin, end;
      if (own)
        Member::share(count, member.rank / plan.hidden_groups, plan.batch_groups, begin, end);
      else
        Member::share(count, member.rank, member.size, begin, end);
      if (begin < end) use(g * panels + first + begin, g * panels + first + end);
    }
  }

  // The input's weight and the biases, of panels [begin, end).
  void prepare_input(int64_t begin, int64_t end) {
    const E* weight_ih = static_cast<const E*>(pass.weight_ih);
    const E* bias_ih = static_cast<const E*>(pass.bias_ih);
    const E* bias_hh = static_cast<const E*>(pass.bias_hh);
    if (!narrow) pack<Op>(packed_ih, begin, end, I, GateRows<E>{weight_ih, H, P, I});
    for (int64_t column = begin * kLanes; column < end * kLanes; ++column) {
      const bool real = column % P < H;
      const int64_t at = gate_row(column, H, P);
      bias_x[column] = real && bias_ih ? to_float(bias_ih[at]) : 0.0f;
      bias_h[column] = real && bias_hh ? to_float(bias_hh[at]) : 0.0f;
      for (int64_t i = 0; narrow && i < I; ++i)
        weight_x[i * G * P + column] = real ? to_float(weight_ih[at * I + i]) : 0.0f;
    }
  }

  // Panels [begin, end) of the recurrent weight once more, row by row.
  void copy_rows(int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const float* from = reinterpret_cast<const float*>(packed_hh) + panel * panel_of(H);
      const int64_t row = row_of_panel(H - panel % V * kLanes);
      for (int64_t k = 0; k < H; ++k) store(rows_hh + k * G * P + panel * kLanes, load(from + k * row, row));
    }
  }

  // The initial state, and the results of samples of length 0.
  void begin(const Part& part) {
    for (int64_t b = part.b0; b < part.b1; ++b)
      for (int64_t v = part.v0; v < part.v1; ++v) {
        const int64_t unit = v * kLanes, count = H - unit < kLanes ? H - unit : kLanes, at = b * H + unit;
        const Vec h = load(static_cast<const E*>(pass.h0) + at, count);
        const bool empty = steps.length(b) == 0;
        store(state[0] + b * P + unit, h);
        if (empty) store(static_cast<E*>(pass.h_n) + at, h, count);
        for (int64_t k = 0; k < cell.states; ++k) {
          const Vec c = load(pass.c0 + k * pass.state_step + at, count);
          store(states + (k * B + b) * P + unit, c);
          if (empty) store(pass.c_n + k * pass.state_step + at, c, count);
        }
        for (int64_t t = steps.length(b); t < pass.T; ++t) {
          store(row_of<E>(pass.output, t, b) + unit, Vec{}, count);
          if (pass.hidden.data) store(row_of<E>(pass.hidden, t, b) + unit, Vec{}, count);
          for (int64_t i = 0; pass.saved && i < cell.saved; ++i) {
            const int64_t from = saved_at(t, b) + i * H + unit;
            if (cell.rounds_saved)
              store(static_cast<E*>(pass.saved) + from, Vec{}, count);
            else
              store(static_cast<float*>(pass.saved) + from, Vec{}, count);
          }
        }
      }
  }

  // gates_x of the chunk that begins with step s, for this member's samples and units.
  void project(const Part& part, int64_t s) {
    int64_t n = 0;
    const int64_t end = s + plan.chunk < pass.T ? s + plan.chunk : pass.T;
    for (int64_t i = s; i < end; ++i)
      for (int64_t b = part.b0; b < part.b1; ++b) {
        if (i >= steps.length(b)) continue;
        const E* x = row_of<E>(pass.x, steps.time(i, b), b);
        float* gates = gates_x_of(i, b);
        if (!I) {
          for (int64_t g = 0; g < G; ++g) {
            const int64_t unit = part.v0 * kLanes, stop = part.v1 * kLanes < H ? part.v1 * kLanes : H;
            convert(gates + g * P + unit, x + g * H + unit, stop - unit);
          }
          continue;
        }
        if constexpr (kConverts) {
          convert(converted + n * I, x, I);
          rows[n] = converted + n * I;
        } else {
          rows[n] = reinterpret_cast<const Word*>(x);
        }
        init[n] = bias_x, out[n] = gates, ++n;
      }
    columns_of(part, n, packed_ih, words_of<Op>(I), false);
  }

  // gates_h of step s.
  void recur(const Part& part, int64_t s) {
    if (!blocks.K) return recur_none(part, s);
    if (blocks.diagonal()) return recur_diagonal(part, s);
    if (!blocks.dense()) return recur_heads(part, s);
    int64_t n = 0;
    for (int64_t b = part.b0; b < part.b1; ++b) {
      if (s >= steps.length(b)) continue;
      const Element* h = steps.reset(s, b) ? zeros : state[s % 2] + b * P;
      if (skips_zeros && recur_spikes(part, h, gates_h + b * G * P)) continue;
      rows[n] = reinterpret_cast<const Word*>(h);
      init[n] = bias_h, out[n] = gates_h + b * G * P, ++n;
    }
    columns_of(part, n, packed_hh, words_of<Op>(H), s % 2);
  }

  // Sums the weight's rows of the units that spike; false where find_spikes refuses.
  bool recur_spikes(const Part& part, const Element* h, float* gates) {
    if constexpr (Op::kElements == 1) {
      const int64_t count = find_spikes(h, H, units);
      for (int64_t g = 0; count >= 0 && g < G; ++g) {
        const int64_t column = g * P + part.v0 * kLanes;
        sum_rows(units, count, rows_hh + column, G * P, part.v1 - part.v0, bias_h + column, gates + column);
      }
      return count >= 0;
    }
    return false;
  }

  // The same at each step.
  void recur_none(const Part& part, int64_t s) {
    for (int64_t b = part.b0; s == 0 && b < part.b1; ++b)
      for (int64_t g = 0; g < G; ++g)
        convert(gates_h + (b * G + g) * P + part.v0 * kLanes, bias_h + g * P + part.v0 * kLanes,
                (part.v1 - part.v0) * kLanes);
  }

  void recur_diagonal(const Part& part, int64_t s) {
    for (int64_t b = part.b0; b < part.b1; ++b) {
      if (s >= steps.length(b)) continue;
      const Element* h = steps.reset(s, b) ? zeros : state[s % 2] + b * P;
      for (int64_t g = 0; g < G; ++g)
        for (int64_t v = part.v0; v < part.v1; ++v) {
          const int64_t unit = v * kLanes, at = g * P + unit;
          store(gates_h + b * G * P + at, load(bias_h + at) + load(diagonal + at) * load(h + unit));
        }
    }
  }

  void recur_heads(const Part& part, int64_t s) {
    const int64_t words = words_of<Op>(blocks.K);
    blocks.each_head(part.v0, part.v1, [&](int64_t head, int64_t panel, int64_t unit, int64_t count) {
      int64_t n = 0;
      for (int64_t b = part.b0; b < part.b1; ++b) {
        if (s >= steps.length(b)) continue;
        rows[n] = reinterpret_cast<const Word*>((steps.reset(s, b) ? zeros : state[s % 2] + b * P) + head * blocks.K);
        init[n] = bias_h, out[n] = gates_h + b * G * P, ++n;
      }
      for (int64_t g = 0; g < G; ++g) {
        const Word* packed = packed_hh + ((g * blocks.heads + head) * blocks.panels + panel) * panel_of(words);
        product<Op>(rows, 1, n, words, packed, g * P + unit, count, false, init, out);
      }
    });
  }

  // The collected rows times the columns of this member's units, of every gate; of all gates at once, unless half of a
  // gate's last vector is spared that way: what is no unit meets no weight.
  // `turned`: the last gate first, which is still in the cache if it was the last one before.
  void columns_of(const Part& part, int64_t n, const Word* packed, int64_t words, bool turned) {
    const int64_t own = part.v1 - part.v0, left = H - (V - 1) * kLanes;
    const bool at_once = own == V && !is_half(left);
    const int64_t gates = at_once ? 1 : G, width = at_once ? G * P : part.v1 == V ? H - part.v0 * kLanes : own * kLanes;
    for (int64_t i = 0; i < gates; ++i) {
      const int64_t g = turned ? gates - 1 - i : i, panel = g * V + part.v0;
      product<Op>(rows, 1, n, words, packed + panel * panel_of(words), panel * kLanes, width, true, init, out);
    }
  }

  // The pointwise part of step s.
  void activate(const Part& part, int64_t s) {
    int64_t n = 0;
    for (int64_t b = part.b0; b < part.b1; ++b) {
      if (s >= steps.length(b)) continue;
      const int64_t t = steps.time(s, b);
      const bool last = s + 1 == steps.length(b);
      ForwardSample& sample = samples[n++];
      sample.gates_x = narrow ? nullptr : gates_x_of(s, b), sample.gates_h = gates_h + b * G * P;
      sample.x = narrow ? row_of<E>(pass.x, t, b) : nullptr;
      sample.h_prev = state[s % 2] + b * P, sample.h = state[(s + 1) % 2] + b * P;
      sample.states = states + b * P;
      sample.inputs = cell.inputs ? row_of<float>(pass.inputs, t, b) : nullptr;
      sample.output = row_of<E>(pass.output, t, b);
      sample.hidden = pass.hidden.data ? row_of<E>(pass.hidden, t, b) : nullptr;
      sample.saved = pass.saved ? static_cast<char*>(pass.saved) + saved_at(t, b) * saved_size<E>(cell) : nullptr;
      sample.h_n = last ? static_cast<E*>(pass.h_n) + b * H : nullptr;
      sample.c_n = last && cell.states ? pass.c_n + b * H : nullptr;
      sample.reset = steps.reset(s, b);
    }
    pointwise.forward({H, P, part.v0, part.v1, B * P, pass.state_step, params, narrow ? I : 0, weight_x, bias_x},
                      samples, n);
  }

  int64_t saved_at(int64_t t, int64_t b) const { return (t * B + b) * cell.saved * H; }

  float* gates_x_of(int64_t s, int64_t b) { return gates_x + (s % plan.chunk * B + b) * G * P; }

  const Forward& pass;
  const Plan& plan;
  const Pointwise& pointwise;
  const CellRow& cell;
  const Blocks blocks;
  const bool spiking;
  const Steps steps;
  const int64_t G, B, I, H, V, P;
  const bool narrow;
  bool skips_zeros = false;  // in products with h
  Word* packed_hh;           // [G*heads] of the panels of a head, of blocks.K
  Word* packed_ih;           // G * V panels of I
  float* diagonal;           // [G*P]
  float* rows_hh;            // [H,G*P], of a spiking cell
  int32_t* units;            // of one member: [H], those that spike
  bool* finite;              // [members]: whether a member's part of the weight is
  float *bias_x, *bias_h;    // [G*P]
  Element* zeros;            // [P]
  Element* state[2];         // [B,P]: h before step s in state[s % 2]
  float* states;             // [states,B,P]
  float* params;             // [params,P]
  float* weight_x;           // [I,G*P], of a narrow input
  float* gates_h;            // [B,G*P]
  float* gates_x;            // [chunk,B,G*P]
  const Word** rows;         // of one member: most_rows()
  float** out;
  const float** init;
  ForwardSample* samples;  // of one member: most_samples()
  Element* converted;      // x as Element, [most_rows(), I]
};
