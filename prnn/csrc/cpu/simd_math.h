// Elementary functions on vectors of floats, for cells that users write. Included after simd.h in the same namespace;
// on x86-64 <immintrin.h> must be included before, outside of it.
//
// Infinities, NaN and the sign of zero are treated as by torch on float32, and denormal numbers as any others. The
// polynomials are minimax fits (Remez exchange) of relative error. A function's error is the largest that the sweep of
// tests/native/test_simd_math.cpp finds with 20 million numbers, with and without contraction to FMA, in units of the
// last place of the exact result.

typedef int32_t VecInt __attribute__((vector_size(PRNN_LANES * 4)));
typedef double VecDouble __attribute__((vector_size(PRNN_LANES * 8)));

// x in all lanes, of a vector or of a float.
template <class V>
static inline V constant_of(float x) {
  if constexpr (sizeof(V) == sizeof(float)) return x;
  return x - V{};
}

static inline Vec abs_of(Vec x) { return bits_of<Vec>(bits_of<VecWord>(x) & 0x7FFFFFFFu); }

static inline VecWord sign_of(Vec x) { return bits_of<VecWord>(x) & 0x80000000u; }

// x with its sign changed where `sign` has the sign's bit.
static inline Vec flipped(Vec x, VecWord sign) { return bits_of<Vec>(bits_of<VecWord>(x) ^ sign); }

// `x` in the lanes of a comparison's result, zero in the others.
template <class Mask>
static inline Vec where(Mask mask, Vec x) {
  return bits_of<Vec>(bits_of<VecWord>(mask) & bits_of<VecWord>(x));
}

// c[0] + c[1] x + c[2] x^2 + ... by Horner's rule.
template <int N>
static inline Vec polynomial(Vec x, const float (&c)[N]) {
  Vec sum = broadcast(c[N - 1]);
#pragma GCC unroll 16
  for (int i = N - 2; i >= 0; --i) sum = sum * x + c[i];
  return sum;
}

// Whether any lane of a comparison's result is true.
template <class Mask>
static inline bool any_of(Mask mask) {
#if PRNN_AVX == 512
  return _mm512_movepi32_mask(bits_of<__m512i>(mask)) != 0;
#elif PRNN_AVX == 2
  return _mm256_movemask_ps(bits_of<__m256>(mask)) != 0;
#else
  struct Words {
    uint64_t word[PRNN_LANES / 2];
  };
  const Words words = bits_of<Words>(mask);
  uint64_t any = 0;
#pragma GCC unroll 8
  for (int i = 0; i < PRNN_LANES / 2; ++i) any |= words.word[i];
  return any != 0;
#endif
}

// A NaN of either operand is the result.
static inline Vec min_of(Vec x, Vec y) { return ((x < y) | (x != x)) ? x : y; }
static inline Vec max_of(Vec x, Vec y) { return ((x > y) | (x != x)) ? x : y; }

// Exact. Instructions, because sqrtf would have to set errno.
static inline Vec sqrt_of(Vec x) {
#if PRNN_AVX == 512
  return bits_of<Vec>(_mm512_maskz_sqrt_ps(0xFFFF, bits_of<__m512>(x)));
#elif PRNN_AVX == 2
  return bits_of<Vec>(_mm256_sqrt_ps(bits_of<__m256>(x)));
#else
  typedef float Four __attribute__((vector_size(16)));
  struct Fours {
    Four part[PRNN_LANES / 4];
  };
  Fours parts = bits_of<Fours>(x);
#pragma GCC unroll 4
  for (Four& part : parts.part) {
#if defined(__x86_64__)
    part = bits_of<Four>(_mm_sqrt_ps(bits_of<__m128>(part)));
#elif defined(__aarch64__)
    asm("fsqrt %0.4s, %1.4s" : "=w"(part) : "w"(part));
#else
    for (int i = 0; i < 4; ++i) part[i] = __builtin_sqrtf(part[i]);
#endif
  }
  return bits_of<Vec>(parts);
#endif
}

#if PRNN_AVX == 512
static inline Vec floor_of(Vec x) { return bits_of<Vec>(_mm512_maskz_roundscale_ps(0xFFFF, bits_of<__m512>(x), 0x9)); }
static inline Vec round_of(Vec x) { return bits_of<Vec>(_mm512_maskz_roundscale_ps(0xFFFF, bits_of<__m512>(x), 0x8)); }
static inline Vec trunc_of(Vec x) { return bits_of<Vec>(_mm512_maskz_roundscale_ps(0xFFFF, bits_of<__m512>(x), 0xB)); }
#elif PRNN_AVX == 2
static inline Vec floor_of(Vec x) { return bits_of<Vec>(_mm256_round_ps(bits_of<__m256>(x), 0x9)); }
static inline Vec round_of(Vec x) { return bits_of<Vec>(_mm256_round_ps(bits_of<__m256>(x), 0x8)); }
static inline Vec trunc_of(Vec x) { return bits_of<Vec>(_mm256_round_ps(bits_of<__m256>(x), 0xB)); }
#else
// |x| to the nearest integer, ties to even: adding 2^23, from which on all floats are integers, rounds.
static inline Vec rounded_magnitude(Vec magnitude) {
  const Vec large = broadcast(8388608.0f);
  return magnitude < large ? (magnitude + large) - large : magnitude;
}
static inline Vec round_of(Vec x) { return flipped(rounded_magnitude(abs_of(x)), sign_of(x)); }
static inline Vec floor_of(Vec x) {
  const Vec nearest = round_of(x);
  return nearest - where(nearest > x, broadcast(1.0f));
}
static inline Vec trunc_of(Vec x) {
  const Vec magnitude = abs_of(x), nearest = rounded_magnitude(magnitude);
  return flipped(nearest - where(nearest > magnitude, broadcast(1.0f)), sign_of(x));
}
#endif

// 2^n, n from -126 to 127.
static inline Vec power_of_two(VecInt n) { return bits_of<Vec>((bits_of<VecWord>(n) + 127u) << 23); }

// x 2^n in two steps, which overflow and become denormal as the product does: n from -252 to 254.
static inline Vec scaled(Vec x, VecInt n) {
  const VecInt half = n >> 1;
  return x * power_of_two(half) * power_of_two(n - half);
}

// exp(r) - 1 for |r| <= 0.3467, within 7e-10 before rounding.
static inline Vec small_expm1(Vec r) {
  return r * r * polynomial(r, {0.5f, 0.166666657f, 0.0416664667f, 0.0083336439f, 0.00139353122f, 0.000196549663f}) + r;
}

// x = n ln2 + r, |r| <= ln2 / 2: n and, returned, exp(r) - 1. x within +-150.
static inline Vec reduced_exponential(Vec x, VecInt& n) {
  const Vec magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const Vec shifted = x * 1.44269504f + magic, count = shifted - magic;
  n = bits_of<VecInt>(bits_of<VecWord>(shifted) - 0x4B400000u);            // less the bits of `magic`
  return small_expm1((x - count * 0.693145752f) - count * 1.4286068e-6f);  // ln2 in two parts (Cody and Waite)
}

// exp(x). Below 1 ulp.
static inline Vec exp_of(Vec x) {
  VecInt n;
  const Vec p = reduced_exponential(clamped(x, -104.0f, 89.0f), n);  // zero and infinity beyond
  return scaled(p + 1.0f, n);
}

// exp(x) - 1 = 2 (2^(n-1) p + (2^(n-1) - 1/2)), in which 2^(n-1) does not overflow. Below 1.4 ulp.
static inline Vec expm1_of(Vec x) {
  VecInt n;
  const Vec p = reduced_exponential(clamped(x, -20.0f, 89.0f), n);
  const Vec power = power_of_two(n - 1), half = power * p + (power - 0.5f);
  return abs_of(x) < 2e-8f ? x : half + half;  // with the sign of zero
}

// x = 2^e m, m from sqrt(1/2) to sqrt(2): e and, returned, m. x positive and finite.
static inline Vec mantissa_of(Vec x, VecInt& e) {
  const auto denormal = x < 1.17549435e-38f;
  const VecWord bits = bits_of<VecWord>(denormal ? x * 8388608.0f : x) - 0x3F3504F3u;  // less those of sqrt(1/2)
  e = (bits_of<VecInt>(bits) >> 23) - (bits_of<VecInt>(denormal) & 23);
  return bits_of<Vec>((bits & 0x7FFFFFu) + 0x3F3504F3u);
}

// e ln2 + log(1 + f) for f of [sqrt(1/2) - 1, sqrt(2) - 1]: f - f^2/2 + f^3 P(f), within 7e-9 before rounding.
static inline Vec log_sum(Vec f, VecInt exponent) {
  const Vec e = __builtin_convertvector(exponent, Vec);
  const Vec p = polynomial(f, {0.333333313f, -0.250008196f, 0.200012267f, -0.166233569f, 0.142017588f, -0.131601825f,
                               0.127615735f, -0.0763449296f});
  const Vec low = e * 1.4286068e-6f - f * f * (0.5f - f * p);
  return e * 0.693145752f + (f + low);  // ln2 in two parts, the first of which gives exact products
}

// The logarithm of a number that is not finite and positive; `result` of one that is.
static inline Vec with_limits_of_log(Vec x, Vec result) {
  const Vec infinity = broadcast(__builtin_inff()), nan = broadcast(__builtin_nanf(""));
  return x > 0.0f ? (x < infinity ? result : x) : x == 0.0f ? -infinity : nan;
}

// log(x). Below 0.9 ulp.
static inline Vec log_of(Vec x) {
  VecInt e;
  const Vec m = mantissa_of(x, e);
  return with_limits_of_log(x, log_sum(m - 1.0f, e));
}

// log(1 + x): what the rounding of 1 + x loses is added to the mantissa. Below 1.5 ulp.
static inline Vec log1p_of(Vec x) {
  const Vec u = x + 1.0f, part = u - 1.0f;
  const Vec lost = (1.0f - (u - part)) + (x - part);  // exact (Knuth's sum)
  VecInt e;
  const Vec m = mantissa_of(u, e);
  const Vec scale = bits_of<Vec>((128u - bits_of<VecWord>(e)) << 23);  // 2^(1-e), zero for e = 128
  const Vec result = with_limits_of_log(u, log_sum((m - 1.0f) + 0.5f * lost * scale, e));
  return abs_of(x) < 2e-8f ? x : result;  // with the sign of zero
}

// x - k pi for an integer or half-integer k up to 3184: pi in four parts, the first three of which give exact products
// (Cody and Waite), because the remainder is as small as 4e-9.
static inline Vec minus_pi(Vec x, Vec k) {
  return (((x - k * 3.140625f) - k * 0.000967502594f) - k * 1.50990672e-07f) - k * 5.12668814e-12f;
}

// sin(r) for |r| <= pi/2, within 7e-9 before rounding.
static inline Vec small_sin(Vec r) {
  const Vec s = r * r;
  return r + r * s * polynomial(s, {-0.166666597f, 0.00833306927f, -0.000198097725f, 2.60607476e-06f});
}

// The C library's function in the lanes beyond 1e4, `result` in the others.
[[maybe_unused]] static __attribute__((noinline, cold)) Vec with_far_lanes(Vec x, Vec result, bool cosine) {
  for (int64_t lane = 0; lane < kLanes; ++lane)
    if (__builtin_fabsf(x[lane]) > 1e4f) result[lane] = cosine ? __builtin_cosf(x[lane]) : __builtin_sinf(x[lane]);
  return result;
}

// sin(x) = (-1)^k sin(x - k pi). Below 2.3 ulp.
static inline Vec sin_of(Vec x) {
  const Vec magic = broadcast(12582912.0f), magnitude = abs_of(x);
  const Vec shifted = magnitude * 0.318309886f + magic;
  const Vec value = small_sin(minus_pi(magnitude, shifted - magic));
  const Vec result = flipped(value, (bits_of<VecWord>(shifted) << 31) ^ sign_of(x));
  const auto far = magnitude > 1e4f;
  return __builtin_expect(any_of(far), 0) ? with_far_lanes(x, result, false) : result;
}

// cos(x) = -(-1)^k sin(x - (k + 1/2) pi). Below 2.3 ulp.
static inline Vec cos_of(Vec x) {
  const Vec magic = broadcast(12582912.0f), magnitude = abs_of(x);
  const Vec shifted = (magnitude * 0.318309886f - 0.5f) + magic;
  const Vec value = small_sin(minus_pi(magnitude, (shifted - magic) + 0.5f));
  const Vec result = flipped(value, ~bits_of<VecWord>(shifted) << 31);
  const auto far = magnitude > 1e4f;
  return __builtin_expect(any_of(far), 0) ? with_far_lanes(x, result, true) : result;
}

// atan(x) by its polynomial, within 4e-9 before rounding, and beyond 1 as pi/2 - atan(1/x). Below 1.5 ulp.
static inline Vec atan_of(Vec x) {
  const Vec one = broadcast(1.0f), magnitude = abs_of(x);
  const auto large = magnitude > one;
  const Vec t = (large ? one : magnitude) / (large ? magnitude : one), s = t * t;
  const Vec p = polynomial(s, {-0.333332986f, 0.199985296f, -0.142640159f, 0.10950882f, -0.0839931294f, 0.0578799546f,
                               -0.0310914759f, 0.010862031f, -0.00178018643f});
  const Vec small = t + t * s * p;
  return flipped(large ? 1.57079637f - (small + 4.37113883e-08f) : small, sign_of(x));  // pi/2 in two parts
}

// erf(x): x + x P(x^2) up to 1, within 2e-9 before rounding; then 1 - exp(Q(|x|)), within 3e-9. Below 1.3 ulp.
static inline Vec erf_of(Vec x) {
  const Vec magnitude = abs_of(x), s = x * x;
  const Vec near = x + x * polynomial(s, {0.128379166f, -0.37612626f, 0.112835787f, -0.0268533472f, 0.0051871622f,
                                          -0.00079978531f, 7.80690389e-05f});
  const Vec t = (magnitude > 4.0f ? broadcast(4.0f) : magnitude) - 2.0f;  // from 3.92 on the result rounds to 1
  Vec power, p;
  exponential(polynomial(t, {-5.36494112f, -4.41815948f, -0.923753977f, -0.0164888632f, 0.00354478811f,
                             -0.000708857144f, 0.000187604557f}),
              power, p);
  return magnitude < 1.0f ? near : flipped(1.0f - (power * p + power), sign_of(x));
}

// log2(m) for m of [sqrt(1/2), sqrt(2)]: s P(s^2) with s = (m - 1) / (m + 1), within 5e-12.
static inline VecDouble log2_of_mantissa(VecDouble m) {
  const VecDouble s = (m - 1.0) / (m + 1.0), z = s * s;
  VecDouble p = z * 0.34072980569088773 + 0.41167273429505274;
  p = p * z + 0.577083584730154;
  p = p * z + 0.9617966733428858;
  p = p * z + 2.8853900817900855;
  return s * p;
}

// |x|^y = 2^(y log2 |x|), the exponent in double precision.
static inline Vec pow_of_magnitude(Vec magnitude, Vec y) {
  const Vec infinity = broadcast(__builtin_inff());
  VecInt exponent;
  const VecDouble m = __builtin_convertvector(mantissa_of(magnitude, exponent), VecDouble);
  Vec e = __builtin_convertvector(exponent, Vec);
  e = magnitude < infinity ? (magnitude > 0.0f ? e : -infinity) : magnitude;
  const VecDouble logarithm = __builtin_convertvector(e, VecDouble) + log2_of_mantissa(m);
  const VecDouble t = __builtin_convertvector(y, VecDouble) * logarithm;
  const Vec near = __builtin_convertvector(t, Vec), magic = broadcast(12582912.0f);
  const Vec shifted = near + magic;
  const VecDouble rest = t - __builtin_convertvector(shifted - magic, VecDouble);
  const Vec p = small_expm1(0.693147182f * __builtin_convertvector(rest, Vec));
  const Vec result = scaled(p + 1.0f, bits_of<VecInt>(bits_of<VecWord>(shifted) - 0x4B400000u));
  return near > 129.0f ? infinity : near < -151.0f ? Vec{} : near == near ? result : near;
}

// x^y with the special cases of C's pow. Below 1.1 ulp.
static inline Vec pow_of(Vec x, Vec y) {
  const Vec one = broadcast(1.0f), infinity = broadcast(__builtin_inff());
  const Vec magnitude = abs_of(x), half = 0.5f * y;
  const auto integer = trunc_of(y) == y, odd = integer & (trunc_of(half) != half);
  Vec result = pow_of_magnitude(magnitude, y);
  result = flipped(result, sign_of(x) & bits_of<VecWord>(odd));
  result = (x < 0.0f) & (magnitude < infinity) & ~integer ? broadcast(__builtin_nanf("")) : result;
  const auto unit = (x == one) | (y == 0.0f) | ((magnitude == one) & (abs_of(y) == infinity));
  return unit ? one : result;
}

// By the C library, lane by lane: exact, and slow.
static inline Vec fmod_of(Vec x, Vec y) {
  for (int lane = 0; lane < PRNN_LANES; ++lane) x[lane] = __builtin_fmodf(x[lane], y[lane]);
  return x;
}
// Likewise. Below 3 ulp with glibc.
static inline Vec erfc_of(Vec x) {
  for (int lane = 0; lane < PRNN_LANES; ++lane) x[lane] = __builtin_erfcf(x[lane]);
  return x;
}
