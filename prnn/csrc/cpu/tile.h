// The matmul of all phases: a few rows at a time against panels of packed columns, in registers.
// Included inside the namespace of an instruction set, after simd.h.
//
//   out[m][n] = init[m][n] + sum_k rows[m][k] * columns[k][n]
//
// Columns are packed in panels of one vector: packed[panel][k][lane], a last panel of few columns with half as many
// lanes (row_of_panel). Each element is summed in the order of k, from zero, whatever rows and panels share a tile with
// it: it is bitwise independent of the partition and the tiling.

// The multiply-add of two words, of one k or of a pair of them. Element is the element type of rows in scratch memory;
// word(k) builds one word from the element at k, or from two, words(k) a vector of consecutive ones; interleave() a
// vector of them from one row or two; spread() a vector of equal ones.
struct Fp32 {
  using Element = float;
  using Word = float;
  static constexpr int64_t kElements = 1;  // in a word
  template <class X>
  static inline Word word(const X* k) {
    return to_float(k[0]);
  }
  template <class X>
  static inline VecWord words(const X* k) {
    return bits_of<VecWord>(load(k));
  }
  template <class X>
  static inline void interleave(Word* to, const X* const* rows, int64_t, int64_t at, int64_t count) {
    store(to, load(rows[0] + at, count));
  }
  static inline Vec spread(Word row) { return broadcast(row); }
  template <class V>
  static inline V multiply_add(V acc, V row, const Word* columns) {
    V column;
    __builtin_memcpy(&column, columns, sizeof(column));
    return acc + row * column;
  }
};

#ifdef PRNN_BF16_PAIRS
// Two bfloat16 of adjacent k, multiplied exactly and accumulated in float. The instruction of AVX512-BF16 where the
// target has it; otherwise an emulation, so that the layout can be tested on any machine.
struct Bf16Pairs {
  using Element = Bfloat16;
  typedef uint32_t Word __attribute__((aligned(2), may_alias));
  static constexpr int64_t kElements = 2;
  static inline Word word(const Bfloat16* k) {
    Word both;
    __builtin_memcpy(&both, k, sizeof(both));
    return both;
  }
  static inline VecWord words(const Bfloat16* k) {
    VecWord both;
    __builtin_memcpy(&both, k, sizeof(both));
    return both;
  }
  static inline void interleave(Word* to, const Bfloat16* const* rows, int64_t n, int64_t at, int64_t count) {
    const VecHalf first = load_half(rows[0] + at, count);
    const VecHalf second = n > 1 ? load_half(rows[1] + at, count) : VecHalf{};
    const VecWord both = __builtin_convertvector(first, VecWord) | __builtin_convertvector(second, VecWord) << 16;
    __builtin_memcpy(to, &both, sizeof(both));
  }
  static inline VecWord spread(Word row) { return row - VecWord{}; }
  template <class V, class Words>
  static inline V multiply_add(V acc, Words both, const Word* columns) {
    Words column;
    __builtin_memcpy(&column, columns, sizeof(column));
#ifdef PRNN_AVX512_BF16
    if constexpr (sizeof(V) == sizeof(Vec))
      return bits_of<V>(_mm512_dpbf16_ps(bits_of<__m512>(acc), bits_of<__m512bh>(both), bits_of<__m512bh>(column)));
    else
      return bits_of<V>(_mm256_dpbf16_ps(bits_of<__m256>(acc), bits_of<__m256bh>(both), bits_of<__m256bh>(column)));
#else
    acc += bits_of<V>(both & 0xFFFF0000u) * bits_of<V>(column & 0xFFFF0000u);
    return acc + bits_of<V>(both << 16) * bits_of<V>(column << 16);
#endif
  }
};
#endif

// Registers for accumulators, and rows of the tallest tile. The other registers hold columns and one broadcast.
#if PRNN_LANES == 16 || defined(__aarch64__)
constexpr int kMaxRows = 8, kAccumulators = 24;  // of 32 registers
#else
constexpr int kMaxRows = 6, kAccumulators = 12;  // of 16 registers
#endif
constexpr int kMaxVectors = 8;
// Whether a last vector of few columns is kept and multiplied as half of one: Zen 4 takes half as long for it.
constexpr bool kHalves = PRNN_LANES == 16;
static constexpr bool is_half(int64_t columns) { return kHalves && columns <= kLanes / 2; }
// Words of a panel of so many k. Panels a multiple of 4 KiB apart would be in one set of the L1 cache, where a tile
// reads a line of each: they have a row more.
static constexpr int64_t panel_of(int64_t words) {
  return (words + (words > 0 && words * kLanes % 1024 == 0)) * kLanes;
}
// Words between two k of a panel.
static constexpr int64_t row_of_panel(int64_t columns) { return is_half(columns) ? kLanes / 2 : kLanes; }

// Vectors of a tile with `rows`. Two rows use a third of the accumulators, not half: a column is held for both.
static constexpr int vectors_for(int rows) {
  const int vectors = rows == 1 ? kMaxVectors : rows == 2 ? kAccumulators / 3 : kAccumulators / rows;
  return vectors > kMaxVectors ? kMaxVectors : vectors;
}

template <class Op>
struct TileArguments {
  const typename Op::Word* const* rows;  // each of K words, `stride` apart
  int64_t stride, K;
  const typename Op::Word* packed;
  const float* const* init;  // null: zero
  float* const* out;
  int64_t column;  // the first of the tiles
  int64_t last;    // columns in the last vector: kLanes, or the remainder
  int64_t count;   // tiles, one below the other
};

// Not inlined into the tiles, which would contain a copy for each of their rows.
static __attribute__((noinline)) void finish_part(Vec acc, const float* init, float* out, int64_t count) {
  store(out, init ? acc + load(init, count) : acc, count);
}

// HALF: half of the last vector is multiplied. A call for each tile, and not for all of a panel, takes 20 to 50 cycles
// more of some 500.
template <class Op, int ROWS, int VECTORS, bool HALF>
static void tiles(const TileArguments<Op>& a) {
  using Word = typename Op::Word;
  constexpr int WHOLE = VECTORS - HALF;
  const int64_t K = a.K, panel = panel_of(K), stride = a.stride, column = a.column, last = a.last;
  const Word* const* from = a.rows;
  const Word* const first = a.packed;
  const float* const* inits = a.init;
  float* const* outs = a.out;
  for (int64_t count = a.count; count > 0; --count) {
    Vec acc[ROWS][VECTORS] = {};
    HalfVec half[ROWS] = {};
    const Word* rows[ROWS];
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m) rows[m] = from[m];
    const Word* packed = first;
#pragma GCC unroll 4
    for (int64_t k = 0; k < K; ++k)
#pragma GCC unroll 8
      for (int m = 0; m < ROWS; ++m) {
        const auto row = Op::spread(rows[m][k * stride]);
#pragma GCC unroll 8
        for (int v = 0; v < WHOLE; ++v) acc[m][v] = Op::multiply_add(acc[m][v], row, packed + v * panel + k * kLanes);
        if constexpr (HALF) half[m] = Op::multiply_add(half[m], lower(row), packed + WHOLE * panel + k * (kLanes / 2));
      }
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m) {
      if constexpr (HALF) acc[m][WHOLE] = widened(half[m]);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) {
        float* out = outs[m] + column + v * kLanes;
        const float* init = inits ? inits[m] + column + v * kLanes : nullptr;
        if (v + 1 == VECTORS && last < kLanes)
          finish_part(acc[m][v], init, out, last);
        else
          store(out, init ? acc[m][v] + load(init) : acc[m][v]);
      }
    }
    from += ROWS, outs += ROWS;
    if (inits) inits += ROWS;
  }
}

// The tiles by rows, vectors, and whether the last is a half, as far as registers hold them.
template <class Op>
struct Tiles {
  using Function = void (*)(const TileArguments<Op>&);
  Function at[kMaxRows + 1][kMaxVectors + 1][2] = {};

  template <int ROWS, int VECTORS>
  constexpr void fill() {
    at[ROWS][VECTORS][0] = &tiles<Op, ROWS, VECTORS, false>;
    if constexpr (kHalves) at[ROWS][VECTORS][1] = &tiles<Op, ROWS, VECTORS, true>;
    if constexpr (VECTORS < vectors_for(ROWS))
      fill<ROWS, VECTORS + 1>();
    else if constexpr (ROWS < kMaxRows)
      fill<ROWS + 1, 1>();
  }
  constexpr Tiles() { fill<1, 1>(); }
};

template <class Op>
static constexpr Tiles<Op> kTiles{};

// out[m][first .. first + columns) for n rows, `packed` beginning with the panel whose first column is `first`. Rows
// and panels are distributed evenly over tiles: a small remainder tile would have too few independent chains of
// additions. The panels of a tile stay in the L1 cache for all rows. `padded`: init and out have room for whole
// vectors.
template <class Op>
static void product(const typename Op::Word* const* rows, int64_t stride, int64_t n, int64_t K,
                    const typename Op::Word* packed, int64_t first, int64_t columns, bool padded,
                    const float* const* init, float* const* out) {
  if (n == 0 || columns == 0) return;
  const int64_t blocks = (n + kMaxRows - 1) / kMaxRows, low = n / blocks, higher = n % blocks;
  const int64_t panels = (columns + kLanes - 1) / kLanes, widest = vectors_for(static_cast<int>(low + (higher > 0)));
  const int64_t groups = (panels + widest - 1) / widest, narrow = panels / groups, wider = panels % groups;
  for (int64_t group = 0, panel = 0; group < groups; ++group) {
    const int64_t vectors = narrow + (group < wider);
    const int64_t column = first + panel * kLanes, left = columns - (panel + vectors - 1) * kLanes;
    const bool half = is_half(left);
    const auto run = [&](int64_t m, int64_t height, int64_t count) {
      if (count)
        kTiles<Op>.at[height][vectors][half]({rows + m, stride, K, packed + panel * panel_of(K),
                                              init ? init + m : nullptr, out + m, column,
                                              padded || left > kLanes ? kLanes : left, count});
    };
    run(0, low + 1, higher);
    run(higher * (low + 1), low, blocks - higher);
    panel += vectors;
  }
}

// packed[panel][word][lane] for panels [begin, end) of a matrix of K rows whose columns are at column(c), null for a
// column of zeros; K is a multiple of a word's elements. A panel's columns of zeros must be its last: from them the
// width of its rows is known. Squares of words are transposed in registers; the remainder goes word by word. Stores of
// half a panel's words overlap, in their order.
template <class Op, class Column>
static void pack(typename Op::Word* packed, int64_t begin, int64_t end, int64_t K, Column column) {
  constexpr int64_t N = Op::kElements;
  const int64_t words = K / N, squares = words / kLanes * kLanes;
  for (int64_t panel = begin; panel < end; ++panel) {
    decltype(column(0)) from[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) from[lane] = column(panel * kLanes + lane);
    typename Op::Word* to = packed + panel * panel_of(words);
    const int64_t row = from[kLanes / 2] ? kLanes : row_of_panel(kLanes / 2);
    for (int64_t word = 0; word < squares; word += kLanes) {
      VecWord rows[kLanes];
#pragma GCC unroll 16
      for (int64_t lane = 0; lane < kLanes; ++lane)
        rows[lane] = from[lane] ? Op::words(from[lane] + word * N) : VecWord{};
      turn_square(rows);
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) __builtin_memcpy(to + (word + i) * row, &rows[i], sizeof(VecWord));
    }
    for (int64_t lane = 0; lane < row; ++lane)
      for (int64_t word = squares; word < words; ++word)
        to[word * row + lane] = from[lane] ? Op::word(from[lane] + word * N) : 0;
  }
}

// The same for a matrix whose row k is at rows[k], with `columns` contiguous columns: a vector at a time.
template <class Op, class X>
static void pack_rows(typename Op::Word* packed, int64_t begin, int64_t end, int64_t columns, int64_t K,
                      const X* const* rows) {
  const int64_t words = (K + Op::kElements - 1) / Op::kElements;
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t column = panel * kLanes, count = columns - column < kLanes ? columns - column : kLanes;
    typename Op::Word* to = packed + panel * panel_of(words);
    for (int64_t k = 0; k < K; k += Op::kElements, to += row_of_panel(count))
      Op::interleave(to, rows + k, K - k, column, count);
  }
}

// A tile's rows from a matrix whose rows, `stride` apart, are the k of the matmul: to[word][i] = matrix[k][i] for
// i < kMaxRows. Whole vectors are read and written, up to kLanes elements past the end: both buffers must have room.
constexpr int64_t kTransposed = (kMaxRows + kLanes - 1) / kLanes * kLanes;

template <class Op>
static void transpose(typename Op::Word* to, const typename Op::Element* matrix, int64_t stride, int64_t K) {
  for (int64_t k = 0; k < K; k += Op::kElements, to += kMaxRows) {
    const typename Op::Element* const rows[] = {matrix + k * stride, matrix + (k + 1) * stride};
#pragma GCC unroll 8
    for (int64_t v = 0; v < kTransposed / kLanes; ++v) Op::interleave(to + v * kLanes, rows, K - k, v * kLanes, kLanes);
  }
}

// Sums over the rows k of a matrix, and of their products with the elements of factors[k], a narrow input.
constexpr int kSummed = 4;

struct ColumnSums {
  Vec total[kSummed];
  Vec products[kNarrow][kSummed];
};

template <class Element, class E, int VECTORS, int COLUMNS>
static void column_sums(ColumnSums& sums, const Element* matrix, int64_t stride, int64_t n, const E* const* factors) {
  Vec total[VECTORS] = {}, products[kNarrow][VECTORS] = {};
  for (int64_t k = 0; k < n; ++k)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      const Vec row = load(matrix + k * stride + v * kLanes);
      total[v] += row;
#pragma GCC unroll 2
      for (int c = 0; c < COLUMNS; ++c) products[c][v] += row * broadcast(to_float(factors[k][c]));
    }
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) {
    sums.total[v] = total[v];
#pragma GCC unroll 2
    for (int c = 0; c < COLUMNS; ++c) sums.products[c][v] = products[c][v];
  }
}

// By the number of columns.
template <class Element, class E, int VECTORS>
static constexpr void (*kColumnSums[kNarrow + 1])(ColumnSums&, const Element*, int64_t, int64_t, const E* const*) = {
    column_sums<Element, E, VECTORS, 0>, column_sums<Element, E, VECTORS, 1>, column_sums<Element, E, VECTORS, 2>};
