// The backward pass. Included inside the namespace of an instruction set, after shape.h.
// Shapes: T time steps, B batch, I input size, H hidden size, G gates; V = panels_of(H) vectors, P = V * kLanes.
//
// The serial part runs a chunk of steps at a time, keeping the gates' gradients in the cache; after each chunk all
// members compute the gradients of the weights, the biases and x from them. Each sum over steps and samples is computed
// by one member, in an order independent of the partition.

template <class E, class Op>
class BackwardRun {
 public:
  using Element = typename Op::Element;
  using Word = typename Op::Word;

  BackwardRun(const BackwardPart& pass, const Plan& plan, int64_t members, Arena& arena, const Pointwise& pointwise)
      : pass(pass),
        plan(plan),
        pointwise(pointwise),
        cell(cell_row(pass)),
        blocks(pass),
        spiking(has_spikes<Op>(pass, blocks)),
        steps(steps_of(pass)),
        G(cell.gates),
        B(pass.B),
        I(pass.weight_ih ? pass.I : 0),
        H(pass.H),
        V(panels_of(H)),
        P(V * kLanes),
        GH(G * H),
        row((panels_of((G - 1) * H + P) | 1) * kLanes),
        most(plan.chunk * B) {
    const bool grad_x = I && pass.grad_x.data, grad_hh = pass.grad_weight_hh && blocks.K,
               grad_ih = I && pass.grad_weight_ih;
    packed_hh = arena.take<Word>(blocks.dense() ? V * panel_of(words_of<Op>(GH)) : G * blocks.heads * head_words());
    packed_ih = arena.take<Word>(grad_x ? panels_of(I) * panel_of(words_of<Op>(GH)) : 0);
    diagonal = arena.take<float>(blocks.diagonal() ? G * P : 0);
    zeros = arena.take<E>(H);
    grad_h = arena.take<float>(B * P);
    grad_states = arena.take<float>(cell.states * B * P);
    params = arena.take<float>(cell.params * P);
    grad_params = arena.take<float>(pass.grad_params ? B * cell.params * P : 0);
    gates_h = arena.take<Element>(most * row + kTransposed);
    gates_x = cell.splits_gates ? arena.take<Element>(most * row + kTransposed) : gates_h;
    packed_h = arena.take<Word>(grad_hh ? blocks.heads * blocks.panels * panel_of(words_of<Op>(most)) : 0);
    units = arena.take<int32_t>(grad_hh && spiking ? most * H : 0);
    counts = arena.take<int64_t>(grad_hh && spiking ? most : 0);
    unit_sums = arena.take<float>(grad_hh && spiking ? members * H * kAtOnce * kLanes : 0);
    packed_x = arena.take<Word>(grad_ih && I > kNarrow ? panels_of(I) * panel_of(words_of<Op>(most)) : 0);
    sum_hh = accumulator(arena, pass.grad_weight_hh, grad_hh, GH * blocks.K);
    sum_ih = accumulator(arena, pass.grad_weight_ih, grad_ih, GH * I);
    sum_bias_hh = accumulator(arena, pass.grad_bias_hh, pass.grad_bias_hh, GH);
    sum_bias_ih = accumulator(arena, pass.grad_bias_ih, pass.grad_bias_ih, GH);
    weight_rows = arena.take<const E*>(members * GH);
    transposed = arena.take<Word>(members * kRowBlocks * transposed_block());
    slots = arena.take<int32_t>(steps.lengths ? members * most : 0);
    multiplied = arena.take<const Word*>(members * most);
    previous = arena.take<const E*>(members * most);
    inputs = arena.take<const E*>(members * most);
    out = arena.take<float*>(members * (most + kRowBlocks * kMaxRows));
    grad_inputs = arena.take<E*>(members * most);
    samples = arena.take<BackwardSample>(members * B);
    unconverted = arena.take<float>(grad_x && kConverts ? most * I : 0);
  }

  void run(Member& member) {
    const Part part(plan, member, B, V);
    weight_rows += member.rank * GH, transposed += member.rank * kRowBlocks * transposed_block();
    slots += steps.lengths ? member.rank * most : 0, multiplied += member.rank * most;
    previous += member.rank * most, inputs += member.rank * most, grad_inputs += member.rank * most;
    out += member.rank * (most + kRowBlocks * kMaxRows), samples += member.rank * B;
    unit_sums += spiking ? member.rank * H * kAtOnce * kLanes : 0;
    prepare(member);
    member.meet_all();
    begin(part);
    bool first_chunk = true;
    for (int64_t end = pass.T; end > 0; first_chunk = false) {
      const int64_t start = (end - 1) / plan.chunk * plan.chunk;
      place(start, end);
      for (int64_t to = end, from; to > start; to = from) {
        from = piece_of(member, start, to);
        member.await(pass.T - from);
        for (int64_t s = to; s-- > from;) {
          differentiate(part, s);
          member.meet(part.first, part.last);
          recur(part, s);
        }
        if (member.hands_over() && pass.grad_x.data) input(member, from, to);
        member.hand_over(pass.T - from);
      }
      member.meet_all();
      accumulate(member, start, end, first_chunk);
      member.meet_all();
      end = start;
    }
    finish(part);
    if (pass.T == 0) clear(member);
    member.meet_all();
    give_back(member);
    sum_params(member);
  }

 private:
  static constexpr bool kConverts = sizeof(E) != sizeof(float);

  static Steps steps_of(const BackwardPart& part) {
    Steps steps(part);
    steps.B = part.batch;  // a row of `resets`
    return steps;
  }

  // The first of the steps before `end` that are run at a time, of a chunk that begins with `start`.
  int64_t piece_of(const Member& member, int64_t start, int64_t end) const {
    const int64_t piece = Handover::steps_of(B), from = member.in_pieces() ? (end - 1) / piece * piece : start;
    return from < start ? start : from;
  }

  // The accumulator of a gradient: in place, or in scratch memory for 16-bit elements. Null if it is not required.
  float* accumulator(Arena& arena, void* place, bool required, int64_t count) {
    if (!kConverts || pass.float_sums) return required ? static_cast<float*>(place) : nullptr;
    float* scratch = arena.take<float>(required ? count : 0);
    return required ? scratch : nullptr;
  }

  // Tiles of the weights' gradients, one below the other, that are multiplied at a time: their panels stay in the L1
  // cache meanwhile, and the rows of gates' gradients in L2.
  static constexpr int64_t kRowBlocks = 10;
  // Words of one such tile's rows; elements are multiplied where they are.
  int64_t transposed_block() const { return Op::kElements == 1 ? 0 : words_of<Op>(most) * kMaxRows + kTransposed; }

  // The rows of a chunk's gates' gradients: those of a step one after the other, without gaps for samples that have
  // ended.
  void place(int64_t start, int64_t end) {
    int32_t n = 0;
    for (int64_t s = start; steps.lengths && s < end; ++s)
      for (int64_t b = 0; b < B; ++b) slots[s % plan.chunk * B + b] = s < steps.length(b) ? n++ : -1;
  }
  int64_t row_at(int64_t s, int64_t b) const {
    const int64_t place = s % plan.chunk * B + b;
    return (steps.lengths ? slots[place] : place) * row;
  }

  // The weights, transposed: the rows of W [G*H,*] are the k of the matmul.
  void prepare(const Member& member) {
    if (blocks.dense())
      pack_weights(member, packed_hh, pass.weight_hh, H);
    else
      pack_heads(member);
    if (I && pass.grad_x.data) pack_weights(member, packed_ih, pass.weight_ih, I);
    if (member.rank != 0) return;
    convert(zeros, static_cast<const float*>(nullptr), H), copy_params(params, pass, P);
    if (blocks.diagonal()) copy_diagonal<E>(diagonal, pass.weight_hh, G, H, P);
  }

  void pack_weights(const Member& member, Word* packed, const void* weight, int64_t columns) {
    for (int64_t k = 0; k < GH; ++k) weight_rows[k] = static_cast<const E*>(weight) + k * columns;
    pack_share(member, packed, columns, GH, weight_rows);
  }

  // A head's block of one gate, [K,K].
  int64_t head_words() const { return blocks.panels * panel_of(words_of<Op>(blocks.K)); }

  void pack_heads(const Member& member) {
    const int64_t K = blocks.K;
    int64_t begin, end;
    Member::share(G * blocks.heads, member.rank, member.size, begin, end);
    for (int64_t block = begin; block < end; ++block) {
      for (int64_t k = 0; k < K; ++k) weight_rows[k] = static_cast<const E*>(pass.weight_hh) + (block * K + k) * K;
      pack_rows<Op>(packed_hh + block * head_words(), 0, blocks.panels, K, K, weight_rows);
    }
  }

  static void pack_share(const Member& member, Word* packed, int64_t columns, int64_t K, const E* const* rows) {
    int64_t begin, end;
    Member::share(panels_of(columns), member.rank, member.size, begin, end);
    pack_rows<Op>(packed, begin, end, columns, K, rows);
  }

  void begin(const Part& part) {
    for (int64_t b = part.b0; b < part.b1; ++b) {
      for (int64_t v = part.v0; v < part.v1; ++v) {
        const int64_t unit = v * kLanes, count = H - unit < kLanes ? H - unit : kLanes, at = b * H + unit;
        const E* grad_h_n = static_cast<const E*>(pass.grad_h_n);
        store(grad_h + b * P + unit, grad_h_n ? load(grad_h_n + at, count) : Vec{});
        for (int64_t k = 0; k < cell.states; ++k) {
          const float* grad_c_n = pass.grad_c_n ? pass.grad_c_n + k * pass.state_step + at : nullptr;
          store(grad_states + (k * B + b) * P + unit, grad_c_n ? load(grad_c_n, count) : Vec{});
        }
        for (int64_t k = 0; pass.grad_params && k < cell.params; ++k)
          store(grad_params + (b * cell.params + k) * P + unit, Vec{});
        for (int64_t t = steps.length(b); pass.grad_inputs.data && t < pass.T; ++t)
          for (int64_t k = 0; k < cell.inputs; ++k)
            store(row_of<float>(pass.grad_inputs, t, b) + k * H + unit, Vec{}, count);
      }
      if (!pass.grad_x.data || part.v0 != 0) continue;
      for (int64_t t = steps.length(b); t < pass.T; ++t)
        convert(row_of<E>(pass.grad_x, t, b), static_cast<const float*>(nullptr), I ? I : GH);
    }
  }

  const void* saved_of(int64_t t, int64_t b) const {
    return static_cast<const char*>(pass.saved) + (t * pass.batch + b) * cell.saved * H * saved_size<E>(cell);
  }

  const E* h_of(int64_t t, int64_t b) const { return row_of<E>(pass.hidden.data ? pass.hidden : pass.output, t, b); }

  // h before step s of a sample: its initial state, the preceding one, or zero.
  const E* state_before(int64_t s, int64_t b) const {
    if (steps.reset(s, b)) return zeros;
    return s ? h_of(steps.time(s - 1, b), b) : static_cast<const E*>(pass.h0) + b * H;
  }

  // The gradient of the gates of step s for this member's units; grad_h keeps the part that bypasses the matmul.
  void differentiate(const Part& part, int64_t s) {
    int64_t n = 0;
    for (int64_t b = part.b0; b < part.b1; ++b) {
      if (s >= steps.length(b)) continue;
      const int64_t t = steps.time(s, b), at = row_at(s, b);
      const bool begins = s == 0, carries = cell.states && !steps.reset(s, b);
      BackwardSample& sample = samples[n++];
      sample.grad_h = grad_h + b * P, sample.grad_states = grad_states + b * P;
      sample.grad_output = pass.grad_output.data ? row_of<E>(pass.grad_output, t, b) : nullptr;
      sample.h = h_of(t, b), sample.h_prev = state_before(s, b);
      sample.saved = cell.saved ? saved_of(t, b) : nullptr;
      sample.saved_before = carries && !begins && cell.saved ? saved_of(steps.time(s - 1, b), b) : nullptr;
      sample.c0 = carries && begins ? pass.c0 + b * H : nullptr;
      sample.grad_params = pass.grad_params ? grad_params + b * cell.params * P : nullptr;
      sample.inputs = cell.inputs ? row_of<float>(pass.inputs, t, b) : nullptr;
      sample.grad_inputs = pass.grad_inputs.data ? row_of<float>(pass.grad_inputs, t, b) : nullptr;
      sample.grad_gates_h = gates_h + at, sample.grad_gates_x = gates_x + at;
    }
    pointwise.backward({H, P, part.v0, part.v1, B * P, pass.state_step, params, 0, nullptr, nullptr}, samples, n);
  }

  // grad_h before step s: the part that bypasses the matmul plus the gates' gradients times W; zero through a reset.
  void recur(const Part& part, int64_t s) {
    int64_t n = 0;
    for (int64_t b = part.b0; b < part.b1; ++b) {
      if (s >= steps.length(b)) continue;
      multiplied[n] = reinterpret_cast<const Word*>(gates_h + row_at(s, b));
      out[n] = grad_h + b * P, ++n;
    }
    const int64_t words = words_of<Op>(GH);
    if (blocks.dense())
      product<Op>(multiplied, 1, n, words, packed_hh + part.v0 * panel_of(words), part.v0 * kLanes,
                  (part.v1 < V ? part.v1 * kLanes : H) - part.v0 * kLanes, true, out, out);
    else if (blocks.diagonal())
      recur_diagonal(part, s);
    else if (blocks.K)
      recur_heads(part, s, n);
    for (int64_t b = part.b0; steps.resets && b < part.b1; ++b)
      for (int64_t v = part.v0; s < steps.length(b) && steps.reset(s, b) && v < part.v1; ++v) {
        store(grad_h + b * P + v * kLanes, Vec{});
        for (int64_t k = 0; k < cell.states; ++k) store(grad_states + (k * B + b) * P + v * kLanes, Vec{});
      }
  }

  void recur_diagonal(const Part& part, int64_t s) {
    for (int64_t b = part.b0; b < part.b1; ++b) {
      if (s >= steps.length(b)) continue;
      const Element* gates = gates_h + row_at(s, b);
      for (int64_t v = part.v0; v < part.v1; ++v) {
        const int64_t unit = v * kLanes, count = H - unit < kLanes ? H - unit : kLanes;
        Vec sum = load(grad_h + b * P + unit);
        for (int64_t g = 0; g < G; ++g) sum += load(gates + g * H + unit, count) * load(diagonal + g * P + unit);
        store(grad_h + b * P + unit, sum);
      }
    }
  }

  // `n` samples, whose grad_h are in `out`.
  void recur_heads(const Part& part, int64_t s, int64_t n) {
    const int64_t words = words_of<Op>(blocks.K);
    for (int64_t g = 0; g < G; ++g)
      blocks.each_head(part.v0, part.v1, [&](int64_t head, int64_t panel, int64_t unit, int64_t count) {
        int64_t i = 0;
        for (int64_t b = part.b0; b < part.b1; ++b)
          if (s < steps.length(b))
            multiplied[i++] = reinterpret_cast<const Word*>(gates_h + row_at(s, b) + g * H + head * blocks.K);
        const Word* packed = packed_hh + (g * blocks.heads + head) * head_words() + panel * panel_of(words);
        product<Op>(multiplied, 1, n, words, packed, unit, count, false, out, out);
      });
  }

  // The contribution of steps [start, end) to the weights' gradients, and their gradients of x, if not handed over.
  void accumulate(Member& member, int64_t start, int64_t end, bool first) {
    int64_t n = 0;
    for (int64_t s = start; s < end; ++s)
      for (int64_t b = 0; b < B; ++b) {
        if (s >= steps.length(b)) continue;
        const int64_t t = steps.time(s, b);
        previous[n] = state_before(s, b);
        inputs[n] = I ? row_of<E>(pass.x, t, b) : nullptr;
        ++n;
      }
    const bool sparse = sum_hh && spiking && list_spikes(member, n);
    if (sum_hh && !blocks.diagonal() && !sparse) pack_states(member, n);
    if (sum_ih && I > kNarrow) pack_share(member, packed_x, I, n, inputs);
    member.meet_all();
    int64_t own, beyond;
    Member::share(GH, member.rank, member.size, own, beyond);
    if (sum_hh && blocks.diagonal()) multiply_diagonal(n, own, beyond, first);
    if (sparse) multiply_spikes(n, own, beyond, first);
    sum_gates(n, own, beyond, first);
    const int64_t tiles = (beyond - own + kMaxRows - 1) / kMaxRows;
    const int64_t groups = (tiles + kRowBlocks - 1) / kRowBlocks;
    for (int64_t group = 0; group < groups; ++group) {
      int64_t block, stop;
      Member::share(tiles, group, groups, block, stop);
      const int64_t m = own + block * kMaxRows, left = beyond - m;
      const int64_t rows = left < (stop - block) * kMaxRows ? left : (stop - block) * kMaxRows;
      const bool states = sum_hh && !blocks.diagonal() && !sparse;
      if (states) interleave_rows(gates_h, n, m, rows), multiply_states(n, m, rows, first);
      if (!sum_ih || I <= kNarrow) continue;
      if (!states || cell.splits_gates) interleave_rows(gates_x, n, m, rows);
      multiply(gates_x, n, m, 0, rows, packed_x, I, sum_ih, first);
    }
    if (pass.grad_x.data && !member.hands_over()) input(member, start, end);
  }

  // Adds the sums of columns [own, beyond) of the gates' gradients to those of the biases, and multiplied with x to
  // those of a weight_ih of few columns.
  void sum_gates(int64_t n, int64_t own, int64_t beyond, bool first) {
    const int64_t columns = sum_ih && I <= kNarrow ? I : 0;
    const bool twice = cell.splits_gates, from_x = columns || (sum_bias_ih && twice);
    if (!columns && !sum_bias_hh && !sum_bias_ih) return;
    for (int64_t m = own, wide; m < beyond; m += wide) {
      const int64_t left = panels_of(beyond - m), vectors = left >= kSummed ? kSummed : left >= 2 ? 2 : 1;
      wide = vectors * kLanes < beyond - m ? vectors * kLanes : beyond - m;
      ColumnSums sums;
      if (!twice || sum_bias_hh) {
        add_columns(sums, gates_h, n, m, vectors, twice ? 0 : columns);
        if (sum_bias_hh) add_sums(sum_bias_hh + m, sums.total, wide, first);
      }
      if (twice && from_x) add_columns(sums, gates_x, n, m, vectors, columns);
      if (sum_bias_ih) add_sums(sum_bias_ih + m, sums.total, wide, first);
      for (int64_t c = 0; c < columns; ++c)
        for (int64_t i = 0; i < wide; ++i) {
          const float value = sums.products[c][i / kLanes][i % kLanes];
          float& sum = sum_ih[(m + i) * I + c];
          sum = first ? value : value + sum;
        }
    }
  }

  void add_columns(ColumnSums& sums, const Element* gates, int64_t n, int64_t m, int64_t vectors,
                   int64_t columns) const {
    const auto sum = vectors == kSummed ? kColumnSums<Element, E, kSummed>[columns]
                     : vectors == 2     ? kColumnSums<Element, E, 2>[columns]
                                        : kColumnSums<Element, E, 1>[columns];
    sum(sums, gates + m, row, n, inputs);
  }

  static void add_sums(float* to, const Vec* sums, int64_t wide, bool first) {
    for (int64_t i = 0; i < wide; i += kLanes) {
      const int64_t count = wide - i < kLanes ? wide - i : kLanes;
      store(to + i, first ? sums[i / kLanes] : sums[i / kLanes] + load(to + i, count), count);
    }
  }

  // Pairs of rows interleaved, for columns [m, m + count) of them; elements are multiplied where they are.
  void interleave_rows(const Element* gates, int64_t n, int64_t m, int64_t count) {
    if constexpr (Op::kElements > 1)
      for (int64_t done = 0; done < count; done += kMaxRows)
        transpose<Op>(transposed + done / kMaxRows * transposed_block(), gates + m + done, row, n);
  }

  // The states before the chunk's steps, head by head.
  void pack_states(const Member& member, int64_t n) {
    const int64_t panels = blocks.panels, words = words_of<Op>(n);
    int64_t begin, end;
    Member::share(blocks.heads * panels, member.rank, member.size, begin, end);
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t column = panel % panels * kLanes, at = panel / panels * blocks.K + column;
      const int64_t count = blocks.K - column < kLanes ? blocks.K - column : kLanes;
      Word* to = packed_h + panel * panel_of(words);
      for (int64_t k = 0; k < n; k += Op::kElements, to += row_of_panel(count))
        Op::interleave(to, previous + k, n - k, at, count);
    }
  }

  // The weight's gradient for rows [m, m + count): those of one head meet its states.
  void multiply_states(int64_t n, int64_t m, int64_t count, bool first) {
    const int64_t head_size = blocks.panels * panel_of(words_of<Op>(n));
    for (int64_t begin = 0, end; begin < count; begin = end) {
      const int64_t unit = (m + begin) % H, head = unit / blocks.K, left = (head + 1) * blocks.K - unit;
      end = blocks.dense() || begin + left > count ? count : begin + left;
      multiply(gates_h, n, m + begin, begin, end - begin, packed_h + head * head_size, blocks.K, sum_hh, first);
    }
  }

  // Of a spiking cell: the units that spike before each of the chunk's steps. False, to all members alike, where
  // find_spikes refuses a row, or where a gate's gradient is not finite.
  bool list_spikes(Member& member, int64_t n) {
    int64_t begin, end;
    Member::share(n, member.rank, member.size, begin, end);
    for (int64_t k = begin; k < end; ++k)
      counts[k] = all_finite(gates_h + k * row, 0, GH) ? find_spikes(previous[k], H, units + k * H) : -1;
    member.meet_all();
    for (int64_t k = 0; k < n; ++k)
      if (counts[k] < 0) return false;
    return true;
  }

  // Rows [own, beyond) of the weight's gradient, from the states that are not 0.
  void multiply_spikes(int64_t n, int64_t own, int64_t beyond, bool first) {
    for (int64_t m = own, wide; m < beyond; m += wide) {
      const int64_t left = panels_of(beyond - m), step = left >= kAtOnce ? kAtOnce : left >= 2 ? 2 : 1;
      const auto sum = step == kAtOnce ? sum_columns<kAtOnce, Element>
                       : step == 2     ? sum_columns<2, Element>
                                       : sum_columns<1, Element>;
      sum(units, counts, n, H, gates_h + m, row, unit_sums);
      wide = step * kLanes;
      add_transposed(sum_hh + m * H, unit_sums, wide, beyond - m < wide ? beyond - m : wide, H, first);
    }
  }

  // Rows [own, beyond) of a diagonal weight's gradient, each from the unit's own states.
  void multiply_diagonal(int64_t n, int64_t own, int64_t beyond, bool first) {
    for (int64_t m = own, end; m < beyond; m = end) {
      const int64_t unit = m % H, vector = m + kLanes, gate = m - unit + H;
      end = vector < gate ? vector : gate;
      end = end < beyond ? end : beyond;
      Vec sum = first ? Vec{} : load(sum_hh + m, end - m);
      for (int64_t k = 0; k < n; ++k) sum += load(gates_h + k * row + m, end - m) * load(previous[k] + unit, end - m);
      store(sum_hh + m, sum, end - m);
    }
  }

  // sum[m + i][:] += sum_k gates[k][m + i] * columns[k][:] for i < count; of pairs the rows just interleaved, from the
  // `skipped`th on.
  void multiply(const Element* gates, int64_t n, int64_t m, int64_t skipped, int64_t count, const Word* packed,
                int64_t columns, float* sum, bool first) {
    const Word* rows[kRowBlocks * kMaxRows];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = skipped + i;
      if constexpr (Op::kElements == 1)
        rows[i] = gates + m + i;
      else
        rows[i] = transposed + at / kMaxRows * transposed_block() + at % kMaxRows;
      out[i] = sum + (m + i) * columns;
    }
    const int64_t stride = Op::kElements == 1 ? row : kMaxRows;
    product<Op>(rows, stride, count, words_of<Op>(n), packed, 0, columns, false, first ? nullptr : out, out);
  }

  // The gradient of x at steps [start, end): that of the gates, times W_ih if there is one.
  void input(const Member& member, int64_t start, int64_t end) {
    int64_t n = 0, first, last;
    for (int64_t s = start; s < end; ++s)
      for (int64_t b = 0; b < B; ++b) {
        if (s >= steps.length(b)) continue;
        multiplied[n] = reinterpret_cast<const Word*>(gates_x + row_at(s, b));
        grad_inputs[n] = row_of<E>(pass.grad_x, steps.time(s, b), b), ++n;
      }
    Member::share(n, member.rank, member.size, first, last);
    for (int64_t k = first; k < last; ++k) {
      if (!I) convert(grad_inputs[k], reinterpret_cast<const Element*>(multiplied[k]), GH);
      if constexpr (kConverts)
        out[k] = unconverted + k * I;
      else
        out[k] = grad_inputs[k];
    }
    if (!I) return;
    product<Op>(multiplied + first, 1, last - first, words_of<Op>(GH), packed_ih, 0, I, false, nullptr, out + first);
    for (int64_t k = first; kConverts && k < last; ++k) convert(grad_inputs[k], out[k], I);
  }

  void finish(const Part& part) {
    for (int64_t b = part.b0; b < part.b1; ++b)
      for (int64_t v = part.v0; v < part.v1; ++v) {
        const int64_t unit = v * kLanes, count = H - unit < kLanes ? H - unit : kLanes, at = b * H + unit;
        if (pass.grad_h0) store(static_cast<E*>(pass.grad_h0) + at, load(grad_h + b * P + unit), count);
        for (int64_t k = 0; pass.grad_c0 && k < cell.states; ++k)
          store(pass.grad_c0 + k * pass.state_step + at, load(grad_states + (k * B + b) * P + unit), count);
      }
  }

  // The gradients' accumulators, the places of the results, and their sizes.
  struct Sum {
    float* sum;
    void* place;
    int64_t count;
  };
  struct Sums {
    Sum all[4];
  };
  Sums all_sums() const {
    return {{{sum_hh, pass.grad_weight_hh, GH * blocks.K},
             {sum_ih, pass.grad_weight_ih, GH * I},
             {sum_bias_hh, pass.grad_bias_hh, GH},
             {sum_bias_ih, pass.grad_bias_ih, GH}}};
  }

  // Over the samples in their order; over the steps each sample's sum is complete.
  void sum_params(const Member& member) const {
    int64_t begin, end;
    Member::share(pass.grad_params ? cell.params * V : 0, member.rank, member.size, begin, end);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t k = i / V, unit = i % V * kLanes, count = H - unit < kLanes ? H - unit : kLanes;
      Vec sum{};
      for (int64_t b = 0; b < B; ++b) sum += load(grad_params + (b * cell.params + k) * P + unit);
      store(pass.grad_params + k * H + unit, sum, count);
    }
  }

  // An empty sequence has no chunk that initialises the sums.
  void clear(const Member& member) const {
    if (member.rank != 0) return;
    const Sums sums = all_sums();
    for (const Sum& each : sums.all)
      if (each.sum) convert(each.sum, static_cast<const float*>(nullptr), each.count);
  }

  void give_back(const Member& member) const {
    if constexpr (kConverts) {
      if (pass.float_sums) return;
      const Sums sums = all_sums();
      for (const Sum& each : sums.all) {
        int64_t begin, end;
        Member::share(each.count, member.rank, member.size, begin, end);
        if (each.sum) convert(static_cast<E*>(each.place) + begin, each.sum + begin, end - begin);
      }
    }
  }

  const BackwardPart& pass;
  const Plan& plan;
  const Pointwise& pointwise;
  const CellRow& cell;
  const Blocks blocks;
  const bool spiking;
  const Steps steps;
  const int64_t G, B, I, H, V, P, GH, row, most;  // row: stride between samples' gates; most: rows of a chunk
  Word* packed_hh;                                // V panels of GH, or [G*heads] of the panels of a head, of K
  Word* packed_ih;                                // the panels of I, of GH
  float* diagonal;                                // [G,P]
  E* zeros;                                       // [H]
  float *grad_h, *grad_states;                    // [B,P], [states,B,P]
  float *params, *grad_params;                    // [params,P], [B,params,P]
  Element *gates_h, *gates_x;                     // [chunk,B,row], aliased where the cell adds the two
  Word* packed_h;                                 // [heads] of the panels of a head, of most
  Word* packed_x;                                 // the panels of I, of most
  int32_t* units;                                 // [most,H], of a spiking cell: those that spike before a step
  int64_t* counts;                                // [most], how many
  float* unit_sums;  // of one member: [H,kAtOnce*kLanes], a chunk's part of grad_weight_hh, transposed
  float *sum_hh, *sum_ih, *sum_bias_hh, *sum_bias_ih;
  const E** weight_rows;  // of one member, like all below: [GH]
  Word* transposed;       // [kRowBlocks][words of most][kMaxRows]
  int32_t* slots;         // [chunk,B], where samples have lengths: the rows of gates' gradients
  const Word** multiplied;
  const E **previous, **inputs;
  float** out;
  E** grad_inputs;
  BackwardSample* samples;  // [B]
  float* unconverted;       // [most,I], shared
};
