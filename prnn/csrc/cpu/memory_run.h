// Differentiable stacks and lists (../stack_memory.h): the common part of the two passes. Included inside the namespace
// of an instruction set.
//
// A run computes samples [b0, b1) for all T steps. The layout of cells is [N][B][S]: updates apply to whole rows of
// lanes, a lane being a sample's memory, without horizontal sums. Of the N cells only those that can differ from
// `empty` are touched. Products with a sample's vector are sums of rows. Plain loops, which the compiler vectorises.

template <class E>
static inline void sigmoid_all(E* x, int64_t n) {
  if constexpr (sizeof(E) == sizeof(float)) {
    for (int64_t i = 0; i < n; i += kLanes) {
      const int64_t count = n - i < kLanes ? n - i : kLanes;
      store(x + i, sigmoid_of(load(x + i, count)), count);
    }
  } else {
    for (int64_t i = 0; i < n; ++i) x[i] = 1 / (1 + __builtin_exp(-x[i]));
  }
}

// x <= 0
template <class E>
static inline void exp_all(E* x, int64_t n) {
  if constexpr (sizeof(E) == sizeof(float)) {
    for (int64_t i = 0; i < n; i += kLanes) {
      const int64_t count = n - i < kLanes ? n - i : kLanes;
      Vec power, p;
      exponential(larger(broadcast(-87.0f), load(x + i, count)), power, p);
      store(x + i, power * p + power, count);
    }
  } else {
    for (int64_t i = 0; i < n; ++i) x[i] = __builtin_exp(x[i]);
  }
}

// sum[i] += x[0] rows[0][i] + x[1] rows[1][i] + ...; `count` rows of n.
template <class E>
static inline void add_rows(E* __restrict sum, const E* __restrict rows, const E* __restrict x, int64_t count,
                            int64_t n) {
  int64_t k = 0;
  for (; k + 4 <= count; k += 4) {
    const E x0 = x[k], x1 = x[k + 1], x2 = x[k + 2], x3 = x[k + 3];
    const E* r = rows + k * n;
    for (int64_t i = 0; i < n; ++i) sum[i] += x0 * r[i] + x1 * r[n + i] + x2 * r[2 * n + i] + x3 * r[3 * n + i];
  }
  for (; k < count; ++k) {
    const E x0 = x[k];
    const E* r = rows + k * n;
    for (int64_t i = 0; i < n; ++i) sum[i] += x0 * r[i];
  }
}

// Cells [low, high), each a row; cells out of this range read as `blank`.
template <class E>
struct Cells {
  E* base;
  int64_t low, high, stride;
  const E* blank;

  E* row(int64_t i) const { return base + (i - low) * stride; }
  const E* at(int64_t i) const { return i >= low && i < high ? row(i) : blank; }
};

template <class E>
struct MemoryRun {
  const Memory& pass;
  const int64_t b0, b1, lanes, wide;  // wide: a row of lanes in scratch memory, whole vectors of any width
  const int64_t H, C, R;              // padded likewise: units, actions with the value, cells read
  E *blank, *actions;                 // rows of lanes; of actions A, and the value

  MemoryRun(const Memory& pass, int64_t b0, int64_t b1, Arena& arena)
      : pass(pass),
        b0(b0),
        b1(b1),
        lanes((b1 - b0) * pass.S),
        wide(whole(lanes)),
        H(whole(pass.H)),
        C(whole((pass.A + 1) * pass.S)),
        R(whole(pass.K * pass.S)),
        blank(arena.take<E>(wide)),
        actions(arena.take<E>((pass.A + 1) * wide)) {}

  static int64_t whole(int64_t n) { return (n + 15) / 16 * 16; }

  void fill(E* row, double value) const {
    for (int64_t l = 0; l < wide; ++l) row[l] = static_cast<E>(value);
  }
  void copy(E* to, const E* from) const { __builtin_memcpy(to, from, sizeof(E) * static_cast<uint64_t>(lanes)); }

  // to[i][j] = from(i, j) in rows of `width`, zero-padded.
  template <class From>
  static void pack(E* to, int64_t rows, int64_t columns, int64_t width, From from) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < width; ++j) to[i * width + j] = j < columns ? from(i, j) : 0;
  }
  E of_hh(int64_t i, int64_t j) const { return static_cast<const E*>(pass.weight_hh)[i * pass.H + j]; }
  // The weight of unit i for read r = k * S + s, cell k of memory s.
  E of_read(int64_t i, int64_t r) const {
    return static_cast<const E*>(pass.weight_read)[(i * pass.S + r % pass.S) * pass.K + r / pass.S];
  }
  // The row of weight_act of action a (A: the value) of memory s.
  int64_t act_row(int64_t a, int64_t s) const { return a < pass.A ? s * pass.A + a : pass.S * pass.A + s; }
  // The weight of c = a * S + s for unit j.
  E of_act(int64_t c, int64_t j) const {
    return static_cast<const E*>(pass.weight_act)[act_row(c / pass.S, c % pass.S) * pass.H + j];
  }

  E* action(int64_t a) const { return actions + a * wide; }
  // This run's part of rows [B,S], at row `number`.
  template <class X>
  X* rows(X* base, int64_t number) const {
    return base + (number * pass.B + b0) * pass.S;
  }
  // Cells [low, high) stored as [high - low,B,S].
  Cells<E> cells(const void* base, int64_t low, int64_t high) const {
    return {rows(static_cast<E*>(const_cast<void*>(base)), 0), low, high, pass.B * pass.S, blank};
  }
  // The memories before step t, among those saved.
  Cells<E> saved(const void* base, int64_t t) const {
    return cells(static_cast<const E*>(base) + pass.saved_before(t), pass.low(t), pass.high(t));
  }
};
