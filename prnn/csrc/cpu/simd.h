// Vectors of floats by the compiler's vector extension (GCC and Clang): one source for SSE, AVX, AVX-512 and NEON.
// Included by each kernel file inside its own namespace, after PRNN_LANES is defined and the target is set.

typedef float Vec __attribute__((vector_size(PRNN_LANES * 4)));
typedef int32_t VecInt __attribute__((vector_size(PRNN_LANES * 4)));

static inline Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

static inline void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof(v)); }

// The first `count` lanes; the others are zero.
static inline Vec load_part(const float* p, int64_t count) {
  Vec v = {};
  __builtin_memcpy(&v, p, static_cast<size_t>(count) * 4);
  return v;
}

static inline void store_part(float* p, Vec v, int64_t count) {
  __builtin_memcpy(p, &v, static_cast<size_t>(count) * 4);
}

// tanh(x) = m / (m + 2) with m = exp(2|x|) - 1, which keeps full relative accuracy near zero.
// exp(y) - 1 = 2^n p + (2^n - 1), y = n ln2 + r, |r| <= ln2 / 2, p = exp(r) - 1 by its Taylor series.
static inline Vec tanh_of(Vec x) {
  const Vec zero = {};
  const Vec magnitude = x < zero ? -x : x;
  // Beyond 9.02 tanh rounds to 1 in float32. A NaN compares false and goes through.
  const Vec y = 2.0f * (magnitude > 9.02f ? zero + 9.02f : magnitude);
  const Vec magic = zero + 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const Vec shifted = y * 1.44269504088896341f + magic;
  const Vec n = shifted - magic;
  const Vec r = (y - n * 0.693145751953125f) - n * 1.42860682030941723e-6f;  // ln2 in two parts (Cody and Waite)
  Vec p = zero + 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r * r + r;
  VecInt bits;
  __builtin_memcpy(&bits, &shifted, sizeof(bits));
  const VecInt exponent = ((bits - 0x4B400000) + 127) << 23;  // 0x4B400000 is `magic`: what is left is n
  Vec power;
  __builtin_memcpy(&power, &exponent, sizeof(power));
  const Vec m = power * p + (power - 1.0f);
  const Vec result = m / (m + 2.0f);
  return x < zero ? -result : result;
}
