// Vectors of floats by the compiler's vector extension (GCC and Clang): one source for SSE, AVX, AVX-512 and NEON.
// Included by each kernel file inside its own namespace, after PRNN_LANES is defined and the target is set.

constexpr int64_t kLanes = PRNN_LANES;

typedef float Vec __attribute__((vector_size(PRNN_LANES * 4)));
typedef uint32_t VecWord __attribute__((vector_size(PRNN_LANES * 4)));
typedef float HalfVec __attribute__((vector_size(PRNN_LANES * 2)));
typedef uint32_t HalfWord __attribute__((vector_size(PRNN_LANES * 2)));
typedef uint16_t VecHalf __attribute__((vector_size(PRNN_LANES * 2)));

// A bfloat16 in memory: the upper half of a float.
struct Bfloat16 {
  uint16_t bits;
};

template <class To, class From>
static inline To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

// x in every lane. (Subtracting a zero vector compiles to no instruction; adding one would.)
static inline Vec broadcast(float x) { return x - Vec{}; }

// The first half of a vector, and a vector of that half whose other lanes are zero: not through memory, where the load
// of a whole vector would wait for two stores.
static inline HalfVec lower(Vec whole) {
#if PRNN_AVX == 512
  return bits_of<HalfVec>(_mm512_maskz_extractf32x8_ps(0xFF, bits_of<__m512>(whole), 0));
#else
  HalfVec half;
  __builtin_memcpy(&half, &whole, sizeof(half));
  return half;
#endif
}
static inline HalfWord lower(VecWord whole) { return bits_of<HalfWord>(lower(bits_of<Vec>(whole))); }
static inline Vec widened(HalfVec half) {
#if PRNN_AVX == 512
  return bits_of<Vec>(_mm512_maskz_insertf32x8(0xFFFF, _mm512_setzero_ps(), bits_of<__m256>(half), 0));
#else
  Vec whole = {};
  __builtin_memcpy(&whole, &half, sizeof(half));
  return whole;
#endif
}

// Round to nearest, ties to even; a NaN stays a quiet NaN. The instruction of AVX512-BF16
// flushes denormals to zero, like that of the products.
static inline VecHalf to_bfloat16(Vec x) {
#ifdef PRNN_AVX512_BF16
  return bits_of<VecHalf>(_mm512_cvtneps_pbh(bits_of<__m512>(x)));
#else
  const VecWord bits = bits_of<VecWord>(x);
  const VecWord rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const VecWord nan = (bits >> 16) | 0x40u;
  return __builtin_convertvector(x == x ? rounded : nan, VecHalf);
#endif
}

static inline Vec from_bfloat16(VecHalf x) { return bits_of<Vec>(__builtin_convertvector(x, VecWord) << 16); }

static inline float to_float(float x) { return x; }
static inline float to_float(Bfloat16 x) { return bits_of<float>(uint32_t{x.bits} << 16); }

// bfloat16 as stored in memory.
static inline VecHalf load_half(const Bfloat16* p) {
  VecHalf v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
static inline VecHalf load_half(const Bfloat16* p, int64_t count) {
  if (count == kLanes) return load_half(p);
  VecHalf v = {};
  for (int64_t lane = 0; lane < count; ++lane) v[lane] = p[lane].bits;
  return v;
}

static inline Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

static inline void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof(v)); }
static inline void store(Bfloat16* p, Vec v) {
  const VecHalf half = to_bfloat16(v);
  __builtin_memcpy(p, &half, sizeof(half));
}

// The first `count` lanes, 1 to kLanes; lanes beyond are zero.
static inline Vec load(const float* p, int64_t count) {
  if (count == kLanes) return load(p);
#if PRNN_AVX == 512
  return bits_of<Vec>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p));
#elif PRNN_AVX == 2
  const VecWord lanes = {0, 1, 2, 3, 4, 5, 6, 7};
  return bits_of<Vec>(_mm256_maskload_ps(p, bits_of<__m256i>(lanes < static_cast<uint32_t>(count))));
#else
  Vec v = {};
  for (int64_t lane = 0; lane < count; ++lane) v[lane] = p[lane];
  return v;
#endif
}

static inline Vec load(const Bfloat16* p) { return from_bfloat16(load_half(p)); }
static inline Vec load(const Bfloat16* p, int64_t count) { return from_bfloat16(load_half(p, count)); }

template <int64_t PIECE, class E>
static inline void store_pieces(E* p, const E* from, int64_t count) {
  if (count & PIECE) __builtin_memcpy(p, from, PIECE * sizeof(E)), p += PIECE, from += PIECE;
  if constexpr (PIECE > 1) store_pieces<PIECE / 2>(p, from, count);
}

// In pieces of 8, 4, 2 and 1: a loop over elements compiles to a call of memcpy, and masked stores are slow.
template <class E>
static inline void store(E* p, Vec v, int64_t count) {
  if (count == kLanes) return store(p, v);
  E whole[kLanes];
  store(whole, v);
  store_pieces<kLanes / 2>(p, whole, count);
}

// v rounded to type E.
template <class E>
static inline Vec rounded(Vec v) {
  if constexpr (sizeof(E) == sizeof(float)) return v;
  return from_bfloat16(to_bfloat16(v));
}

template <int... LANE>
struct Lanes {};
#if PRNN_LANES == 16
using AllLanes = Lanes<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>;
#elif PRNN_LANES == 8
using AllLanes = Lanes<0, 1, 2, 3, 4, 5, 6, 7>;
#else
using AllLanes = Lanes<0, 1, 2, 3>;
#endif

// Two rows STEP apart exchange the lanes whose STEP bit is not that of the row.
template <int STEP, int... LANE>
static inline void exchange(VecWord& a, VecWord& b, Lanes<LANE...>) {
  constexpr int L = PRNN_LANES;
#if defined(__clang__)
  const VecWord low = __builtin_shufflevector(a, b, (LANE & STEP ? L + LANE - STEP : LANE)...);
  b = __builtin_shufflevector(a, b, (LANE & STEP ? L + LANE : LANE + STEP)...);
#else  // GCC before 12 has only this one
  const VecWord low = __builtin_shuffle(a, b, VecWord{(LANE & STEP ? L + LANE - STEP : LANE)...});
  b = __builtin_shuffle(a, b, VecWord{(LANE & STEP ? L + LANE : LANE + STEP)...});
#endif
  a = low;
}

// rows[i][j] = rows[j][i]: a square transposed, by exchanges between rows 1, 2, 4, ... apart.
template <int STEP = PRNN_LANES / 2>
static inline void turn_square(VecWord (&rows)[PRNN_LANES]) {
#pragma GCC unroll 16
  for (int i = 0; i < PRNN_LANES; ++i)
    if (!(i & STEP)) exchange<STEP>(rows[i], rows[i + STEP], AllLanes{});
  if constexpr (STEP > 1) turn_square<STEP / 2>(rows);
}

// a < b ? a : b and a > b ? a : b, in one instruction: the second where either is a NaN.
static inline Vec smaller(Vec a, Vec b) {
#if PRNN_AVX == 512
  return bits_of<Vec>(_mm512_maskz_min_ps(0xFFFF, bits_of<__m512>(a), bits_of<__m512>(b)));
#elif PRNN_AVX == 2
  return bits_of<Vec>(_mm256_min_ps(bits_of<__m256>(a), bits_of<__m256>(b)));
#else
  return a < b ? a : b;
#endif
}
static inline Vec larger(Vec a, Vec b) {
#if PRNN_AVX == 512
  return bits_of<Vec>(_mm512_maskz_max_ps(0xFFFF, bits_of<__m512>(a), bits_of<__m512>(b)));
#elif PRNN_AVX == 2
  return bits_of<Vec>(_mm256_max_ps(bits_of<__m256>(a), bits_of<__m256>(b)));
#else
  return a > b ? a : b;
#endif
}

// Within the bounds; a NaN stays one.
static inline Vec clamped(Vec x, float low, float high) { return smaller(broadcast(high), larger(broadcast(low), x)); }

// exp(y) - 1 = 2^n p + (2^n - 1), y = n ln2 + r, |r| <= ln2 / 2, p = exp(r) - 1: 2^n and p. The polynomial is a minimax
// fit (Remez exchange) whose relative error is 1.3e-8. y from -87 to 89; 2^n is infinite from 88.4 on.
static inline void exponential(Vec y, Vec& power, Vec& p) {
  const Vec magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const Vec shifted = y * 1.44269504088896341f + magic;
  const Vec n = shifted - magic;
  const Vec r = (y - n * 0.693145751953125f) - n * 1.42860682030941723e-6f;  // ln2 in two parts (Cody and Waite)
  p = broadcast(0.00138824977823f);
  p = p * r + 0.00836664679207f;
  p = p * r + 0.0416672039141f;
  p = p * r + 0.166665426845f;
  p = p * r + 0.499999981329f;
  p = p * (r * r) + r;
  const VecWord exponent = (bits_of<VecWord>(shifted) - 0x4B400000u + 127u) << 23;  // 0x4B400000 is `magic`
  power = bits_of<Vec>(exponent);
}

// tanh(x) = m / (m + 2) with m = exp(2|x|) - 1, which keeps full relative accuracy near zero. Below 3 ulp.
static inline Vec tanh_of(Vec x) {
  constexpr uint32_t kSign = 0x80000000u;
  const Vec magnitude = bits_of<Vec>(bits_of<VecWord>(x) & ~kSign);
  // Beyond 9.02 tanh rounds to 1 in float32.
  Vec power, p;
  exponential(2.0f * smaller(broadcast(9.02f), magnitude), power, p);
  const Vec m = power * p + (power - 1.0f);
  return bits_of<Vec>(bits_of<VecWord>(m / (m + 2.0f)) | (bits_of<VecWord>(x) & kSign));
}

// sigmoid(x) = 1 / (1 + exp(-x)). Below 3 ulp for x > -88.4, where it is 4e-39; zero below, so that x sigmoid(x) is,
// too.
static inline Vec sigmoid_of(Vec x) {
  Vec power, p;
  exponential(clamped(-x, -87.0f, 89.0f), power, p);
  return 1.0f / (1.0f + power * (1.0f + p));  // and not power * p + power, a NaN where 2^n is infinite and p negative
}
