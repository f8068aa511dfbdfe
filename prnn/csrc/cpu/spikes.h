// Products with the states of a spiking cell, 0 or 1 and mostly 0. What is 0 is left out of a sum: that changes no bit
// of it where the other factor is finite. Included inside the namespace of an instruction set, after blocks.h.

// A row of which a quarter spikes takes as long in the tiles, forward; backward one of a fifth.
constexpr int64_t kSparse = 4;

// Fewer rows than this, of all steps and samples, are not worth a second copy of the weight.
constexpr int64_t kWorthCopy = 32;

// Whether the layer's h may be multiplied so.
template <class Op>
static bool has_spikes(const Layer& layer, const Blocks& blocks) {
  return Op::kElements == 1 && layer.user && layer.user->spikes && blocks.dense();
}

// A bit for each lane that is not `value`; a NaN is not.
static inline uint64_t lanes_other_than(float value, Vec x) {
#if PRNN_AVX == 512
  return _mm512_cmp_ps_mask(bits_of<__m512>(x), _mm512_set1_ps(value), _CMP_NEQ_UQ);
#elif PRNN_AVX == 2
  return static_cast<uint32_t>(
      _mm256_movemask_ps(_mm256_cmp_ps(bits_of<__m256>(x), _mm256_set1_ps(value), _CMP_NEQ_UQ)));
#else
  uint64_t lanes = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) lanes |= static_cast<uint64_t>(x[lane] != value) << lane;
  return lanes;
#endif
}

// Writes the units that spike, in their order, and returns their number: -1 where they are too many, or where an
// element is neither 0 nor 1, as in an initial state.
template <class E>
static int64_t find_spikes(const E* row, int64_t n, int32_t* units) {
  int64_t count = 0;
  for (int64_t begin = 0; begin < n; begin += 64) {  // a loop for each vector would end in a misprediction each time
    uint64_t bits = 0, both = 0;
    for (int64_t i = begin; i < n && i < begin + 64; i += kLanes) {
      const Vec h = load(row + i, n - i < kLanes ? n - i : kLanes);
      const uint64_t spikes = lanes_other_than(0.0f, h);
      bits |= spikes << (i - begin), both |= spikes & lanes_other_than(1.0f, h);
    }
    if (both || (count + __builtin_popcountll(bits)) * kSparse > n) return -1;
    for (; bits; bits &= bits - 1) units[count++] = static_cast<int32_t>(begin + __builtin_ctzll(bits));
  }
  return count;
}

// Whether elements [begin, end) are finite.
template <class E>
static bool all_finite(const E* x, int64_t begin, int64_t end) {
  Vec sums[4] = {};  // one would wait for itself
  int64_t i = begin;
  for (; i + 4 * kLanes <= end; i += 4 * kLanes)
    for (int64_t j = 0; j < 4; ++j) sums[j] += 0.0f * load(x + i + j * kLanes);  // 0 or NaN
  for (; i < end; i += kLanes) sums[0] += 0.0f * load(x + i, end - i < kLanes ? end - i : kLanes);
  return !lanes_other_than(0.0f, (sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// out[0 .. VECTORS * kLanes) = init + the sum of rows[unit * stride ..] over the units.
template <int VECTORS>
static void sum_rows(const int32_t* units, int64_t count, const float* rows, int64_t stride, const float* init,
                     float* out) {
  Vec acc[VECTORS] = {};
  for (int64_t i = 0; i < count; ++i) {
    const float* row = rows + units[i] * stride;
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) acc[v] += load(row + v * kLanes);
  }
#pragma GCC unroll 8
  for (int v = 0; v < VECTORS; ++v) store(out + v * kLanes, acc[v] + load(init + v * kLanes));
}

// The same for any number of vectors.
static void sum_rows(const int32_t* units, int64_t count, const float* rows, int64_t stride, int64_t vectors,
                     const float* init, float* out) {
  for (int64_t v = 0, step; v < vectors; v += step) {
    const int64_t left = vectors - v, at = v * kLanes;
    step = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    const auto sum = step == 8 ? sum_rows<8> : step == 4 ? sum_rows<4> : step == 2 ? sum_rows<2> : sum_rows<1>;
    sum(units, count, rows + at, stride, init + at, out + at);
  }
}

// Vectors of gates whose sums over a chunk stay in the L1 cache, at H 128 in half of it.
constexpr int64_t kAtOnce = 4;

// sums[unit][v] = the sum of row k's vector v over the k before which the unit spikes; units[k * H ..] are those that
// spike before k. Rows are `stride` apart.
template <int VECTORS, class Element>
static void sum_columns(const int32_t* units, const int64_t* counts, int64_t n, int64_t H, const Element* rows,
                        int64_t stride, float* sums) {
  convert(sums, static_cast<const float*>(nullptr), H * VECTORS * kLanes);
  for (int64_t k = 0; k < n; ++k)
    for (int64_t i = 0; i < counts[k]; ++i) {
      float* sum = sums + units[k * H + i] * VECTORS * kLanes;
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v)
        store(sum + v * kLanes, load(sum + v * kLanes) + load(rows + k * stride + v * kLanes));
    }
}

// sum[m * columns + c] = transposed[c * stride + m], plus what it was unless it is the `first`, for m < rows.
static void add_transposed(float* sum, const float* transposed, int64_t stride, int64_t rows, int64_t columns,
                           bool first) {
  for (int64_t c = 0; c < columns; c += kLanes)
    for (int64_t m = 0; m < rows; m += kLanes) {
      const int64_t wide = columns - c < kLanes ? columns - c : kLanes, high = rows - m < kLanes ? rows - m : kLanes;
      VecWord square[kLanes] = {};
      for (int64_t i = 0; i < wide; ++i) square[i] = bits_of<VecWord>(load(transposed + (c + i) * stride + m));
      turn_square(square);
      for (int64_t i = 0; i < high; ++i) {
        float* to = sum + (m + i) * columns + c;
        const Vec row = bits_of<Vec>(square[i]);
        store(to, first ? row : row + load(to, wide), wide);
      }
    }
}
