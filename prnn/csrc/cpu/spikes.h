// Products with the states of a spiking cell, 0 or 1 and mostly 0. What is 0 is left out of a sum: that changes no bit
// of it where the other factor is finite. Included inside the namespace of an instruction set, after blocks.h.

// A row of a quarter of ones is as fast in the tiles.
constexpr int64_t kSparse = 4;

// Whether the layer's h may be multiplied so.
template <class Op>
static bool has_spikes(const Layer& layer, const Blocks& blocks) {
  return Op::kElements == 1 && layer.user && layer.user->spikes && blocks.dense();
}

// A bit for each lane that is not 0.
static inline uint64_t nonzero_lanes(Vec x) {
#if PRNN_AVX == 512
  return _mm512_cmp_ps_mask(bits_of<__m512>(x), _mm512_setzero_ps(), _CMP_NEQ_UQ);
#elif PRNN_AVX == 2
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(bits_of<__m256>(x), _mm256_setzero_ps(), _CMP_NEQ_UQ)));
#else
  uint64_t lanes = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) lanes |= static_cast<uint64_t>(x[lane] != 0.0f) << lane;
  return lanes;
#endif
}

// An element that is not 0.
struct Spike {
  int32_t unit;
  float h;
};

// Writes the elements that are not 0, in their order, and returns their number.
template <class E>
static int64_t find_spikes(const E* row, int64_t n, Spike* spikes) {
  int64_t count = 0;
  for (int64_t begin = 0; begin < n; begin += 64) {  // a loop for each vector would end in a misprediction each time
    uint64_t bits = 0;
    for (int64_t i = begin; i < n && i < begin + 64; i += kLanes)
      bits |= nonzero_lanes(load(row + i, n - i < kLanes ? n - i : kLanes)) << (i - begin);
    for (; bits; bits &= bits - 1) {
      const int64_t unit = begin + __builtin_ctzll(bits);
      spikes[count++] = {static_cast<int32_t>(unit), to_float(row[unit])};
    }
  }
  return count;
}

template <class E>
static bool all_finite(const E* x, int64_t n) {
  Vec sum = {};
  for (int64_t i = 0; i < n; i += kLanes) sum += 0.0f * load(x + i, n - i < kLanes ? n - i : kLanes);  // 0 or NaN
  return !nonzero_lanes(sum);
}

// out[0 .. VECTORS * kLanes) = init + the sum over the spikes of h * rows[unit * stride ..].
template <int VECTORS>
static void sum_rows(const Spike* spikes, int64_t count, const float* rows, int64_t stride, const float* init,
                     float* out) {
  Vec acc[VECTORS] = {};
  for (int64_t i = 0; i < count; ++i) {
    const Vec h = broadcast(spikes[i].h);
    const float* row = rows + spikes[i].unit * stride;
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) acc[v] += h * load(row + v * kLanes);
  }
#pragma GCC unroll 8
  for (int v = 0; v < VECTORS; ++v) store(out + v * kLanes, acc[v] + load(init + v * kLanes));
}

// The same for any number of vectors.
static void sum_rows(const Spike* spikes, int64_t count, const float* rows, int64_t stride, int64_t vectors,
                     const float* init, float* out) {
  for (int64_t v = 0, step; v < vectors; v += step) {
    const int64_t left = vectors - v, at = v * kLanes;
    step = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    const auto sum = step == 8 ? sum_rows<8> : step == 4 ? sum_rows<4> : step == 2 ? sum_rows<2> : sum_rows<1>;
    sum(spikes, count, rows + at, stride, init + at, out + at);
  }
}

// Vectors of gates whose sums over a chunk stay in the L1 cache, at H 128 in half of it.
constexpr int64_t kAtOnce = 4;

// sums[unit][v] = the sum over the rows' spikes of unit of h * rows[k][at + v * kLanes ..]; spikes[k * H ..] are those
// of row k.
template <int VECTORS, class Element>
static void sum_columns(const Spike* spikes, const int64_t* counts, int64_t n, int64_t H, const Element* const* rows,
                        int64_t at, float* sums) {
  convert(sums, static_cast<const float*>(nullptr), H * VECTORS * kLanes);
  for (int64_t k = 0; k < n; ++k)
    for (int64_t i = 0; i < counts[k]; ++i) {
      const Spike spike = spikes[k * H + i];
      const Vec h = broadcast(spike.h);
      float* sum = sums + spike.unit * VECTORS * kLanes;
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v)
        store(sum + v * kLanes, load(sum + v * kLanes) + h * load(rows[k] + at + v * kLanes));
    }
}

// sum[m * columns + c] = share[c * stride + m], plus what it was unless it is the `first`, for m < rows.
static void add_turned(float* sum, const float* share, int64_t stride, int64_t rows, int64_t columns, bool first) {
  for (int64_t c = 0; c < columns; c += kLanes)
    for (int64_t m = 0; m < rows; m += kLanes) {
      const int64_t wide = columns - c < kLanes ? columns - c : kLanes, high = rows - m < kLanes ? rows - m : kLanes;
      VecWord square[kLanes] = {};
      for (int64_t i = 0; i < wide; ++i) square[i] = bits_of<VecWord>(load(share + (c + i) * stride + m));
      turn_square(square);
      for (int64_t i = 0; i < high; ++i) {
        float* to = sum + (m + i) * columns + c;
        const Vec turned = bits_of<Vec>(square[i]);
        store(to, first ? turned : turned + load(to, wide), wide);
      }
    }
}
