typedef union {
  float value;
  uint32_t bits;
} float_bits;

static inline float abs_of(float x) {
  float_bits y;
  y.value = x;
  y.bits &= 0x7fffffffu;
  return y.value;
}

/* A choice without a branch: an operation in a branch keeps compilers from vectors, as it might trap. */
static inline float select_of(int condition, float a, float b) {
  float_bits first, second;
  const uint32_t mask = condition ? 0xffffffffu : 0u;
  first.value = a;
  second.value = b;
  first.bits = (first.bits & mask) | (second.bits & ~mask);
  return first.value;
}

/* The sign of y with the magnitude of x. */
static inline float with_sign_of(float x, float y) {
  float_bits magnitude, sign;
  magnitude.value = x;
  sign.value = y;
  magnitude.bits = (magnitude.bits & 0x7fffffffu) | (sign.bits & 0x80000000u);
  return magnitude.value;
}

/* To the nearest whole number, halves to even: beyond 2^23 a float is whole, and adding 2^23 rounds the others. */
static inline float round_of(float x) {
  const float size = abs_of(x);
  const float whole = (size + 8388608.0f) - 8388608.0f;
  return select_of(size < 8388608.0f, with_sign_of(whole, x), x);
}

static inline float floor_of(float x) {
  const float whole = round_of(x);
  return whole - (whole > x ? 1.0f : 0.0f);
}

static inline float trunc_of(float x) { return with_sign_of(floor_of(abs_of(x)), x); }

/* x = n log 2 + r, exp x = 2^n exp r. The polynomial is Taylor's, |r| <= 0.35: relative error 2e-7. Outside [-87, 87]
   it is 2e-38 or 6e37, the values there. (One bound of the magnitude: of two, compilers make branches.) */
static inline float exp_of(float x) {
  const float size = abs_of(x), bounded = with_sign_of(size > 87.0f ? 87.0f : size, x);
  float_bits n, power;
  n.value = bounded * 1.44269504f + 12582912.0f; /* the last bits of the sum are those of n */
  const float whole = n.value - 12582912.0f;
  const float r = (bounded - whole * 0.693359375f) - whole * -2.12194440e-4f;
  const float p = 1.38888889e-3f + r * 1.98412698e-4f;
  const float q = ((p * r + 8.33333333e-3f) * r + 4.16666667e-2f) * r + 1.66666667e-1f;
  power.bits = (n.bits << 23) + 0x3f800000u;
  return (((q * r + 0.5f) * r + 1.0f) * r + 1.0f) * power.value;
}

static inline float expm1_of(float x) {
  const float p = 1.98412698e-4f + x * 2.48015873e-5f;
  const float q = ((p * x + 1.38888889e-3f) * x + 8.33333333e-3f) * x + 4.16666667e-2f;
  const float near = ((q * x + 1.66666667e-1f) * x + 0.5f) * x * x + x;
  return select_of(abs_of(x) < 0.5f, near, exp_of(x) - 1.0f);
}

/* x = 2^e m, sqrt(1/2) <= m < sqrt(2); the polynomial in m - 1 is fitted. Relative error 1e-7. */
static inline float log_of(float x) {
  const int small = x < 1.17549435e-38f;
  const float normal = x * (small ? 8388608.0f : 1.0f);
  float_bits m;
  m.value = normal;
  const uint32_t shifted = m.bits - 0x3f3504f3u;
  const float e = (float)((int32_t)(shifted & 0xff800000u) / 8388608) - (small ? 23.0f : 0.0f);
  m.bits = (shifted & 0x007fffffu) + 0x3f3504f3u;
  const float f = m.value - 1.0f;
  const float p = ((6.746643999e-2f * f - 1.167565837e-1f) * f + 1.188816429e-1f) * f - 1.240558806e-1f;
  const float q = ((p * f + 1.421955199e-1f) * f - 1.666799589e-1f) * f + 2.000211868e-1f;
  const float s = ((q * f - 2.500000960e-1f) * f + 3.333331260e-1f) * f * f * f;
  const float y = (s + e * -2.12194440e-4f - 0.5f * f * f) + f + e * 0.693359375f;
  const float positive = select_of((x > 3.40282347e38f) | (x != x), x, y);
  return select_of(x == 0.0f, -INFINITE, select_of(x < 0.0f, NOT_A_NUMBER, positive));
}

/* What 1 + x lost of x is a correction of the first order. */
static inline float log1p_of(float x) {
  const float u = 1.0f + x;
  const float lost = select_of((u > 0.0f) & (u < 3.40282347e38f), (x - (u - 1.0f)) / u, 0.0f);
  return log_of(u) + lost;
}

/* Newton's iterations for 1 / sqrt(x). */
static inline float sqrt_of(float x) {
  float_bits guess;
  guess.value = x;
  guess.bits = 0x5f375a86u - (guess.bits >> 1);
  float y = guess.value;
  y = y * (1.5f - 0.5f * x * y * y);
  y = y * (1.5f - 0.5f * x * y * y);
  y = y * (1.5f - 0.5f * x * y * y);
  const float root = x * y;
  const float closer = root + 0.5f * (x - root * root) * y;
  const float found = select_of((x > 3.40282347e38f) | (x == 0.0f), x, select_of(x < 1.0e-37f, 0.0f, closer));
  return select_of(x < 0.0f, NOT_A_NUMBER, found);
}

/* x times a ratio of polynomials of x^2, fitted for the least relative error on [0, 9]: 4e-7. From 9 on tanh is 1. */
static inline float tanh_of(float x) {
  const float size = abs_of(x), y = with_sign_of(size > 9.0f ? 9.0f : size, x), square = y * y;
  const float p = ((1.335454768e-8f * square + 2.060899718e-5f) * square + 3.495582871e-3f) * square;
  const float q = ((7.776510762e-7f * square + 3.285626270e-4f) * square + 2.587696216e-2f) * square;
  return ((p + 0.133810212f) * square + 0.9999999795f) * y / ((q + 0.467143368f) * square + 1.0f);
}

static inline float sigmoid_of(float x) { return 1.0f / (1.0f + exp_of(-x)); }

/* x = n pi/2 + r, |r| <= pi/4, up to 8192; the polynomials are fitted. ``quarter``: 0 for the sine, 1 for
   the cosine. */
static inline float quarter_wave_of(float x, float quarter) {
  const float whole = round_of(x * 0.636619772f);
  const float r = ((x - whole * 1.5703125f) - whole * 4.837512969970703125e-4f) - whole * 7.54978995489188e-8f;
  const float n = whole + quarter, turn = n - 4.0f * floor_of(n * 0.25f), square = r * r;
  const float p = (-1.951463126e-4f * square + 8.332156049e-3f) * square - 1.666665454e-1f;
  const float q = (2.443241235e-5f * square - 1.388730986e-3f) * square + 4.166664555e-2f;
  const float sine = p * square * r + r, cosine = q * square * square - 0.5f * square + 1.0f;
  const float wave = select_of((turn == 1.0f) | (turn == 3.0f), cosine, sine);
  return select_of(abs_of(x) < 1.0e7f, select_of(turn > 1.0f, -wave, wave), x - x); /* 0 of what is too large */
}

static inline float sin_of(float x) { return quarter_wave_of(x, 0.0f); }

static inline float cos_of(float x) { return quarter_wave_of(x, 1.0f); }

/* Of x, of its reciprocal, or of (x - 1) / (x + 1), which are below tan(pi/8); the polynomial is fitted. */
static inline float atan_of(float x) {
  const float size = abs_of(x);
  const int far = size > 2.414213562f, middle = size > 0.4142135624f;
  const float shift = far ? 1.5707963268f : middle ? 0.7853981634f : 0.0f;
  const float y = select_of(far, -1.0f / size, select_of(middle, (size - 1.0f) / (size + 1.0f), size));
  const float square = y * y;
  const float p = (8.048834223e-2f * square - 1.387626926e-1f) * square + 1.997758994e-1f;
  return with_sign_of(shift + ((p * square - 3.333294631e-1f) * square * y + y), x);
}

/* Abramowitz and Stegun, 7.1.26: absolute error 2e-7. */
static inline float erf_of(float x) {
  const float size = abs_of(x), t = 1.0f / (1.0f + 0.3275911f * size);
  const float p = ((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f;
  return with_sign_of(1.0f - (p * t + 0.254829592f) * t * exp_of(-size * size), x);
}

static inline float erfc_of(float x) { return 1.0f - erf_of(x); }

/* x - y trunc(x / y), whose quotient must be below 2^24. */
static inline float fmod_of(float x, float y) {
  const float rest = abs_of(x) - abs_of(y) * trunc_of(abs_of(x) / abs_of(y));
  const float found = rest < 0.0f ? rest + abs_of(y) : rest >= abs_of(y) ? rest - abs_of(y) : rest;
  return abs_of(y) > 3.40282347e38f && x - x == 0.0f ? x : with_sign_of(found, x);
}

/* exp(y log x), and its sign where y is whole. */
static inline float pow_of(float x, float y) {
  const float power = exp_of(y * log_of(abs_of(x)));
  const int whole = round_of(y) == y, odd = whole && 2.0f * round_of(0.5f * y) != y;
  const float of_negative = !whole ? NOT_A_NUMBER : odd ? -power : power;
  const float zero_or_one = y == 0.0f || x == 1.0f ? 1.0f : x < 0.0f ? of_negative : power;
  return zero_or_one;
}

/* NaN where one of them is. */
static inline float maximum_of(float a, float b) { return a > b || a != a ? a : b; }

static inline float minimum_of(float a, float b) { return a < b || a != a ? a : b; }
