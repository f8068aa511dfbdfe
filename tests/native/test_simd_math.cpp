// The elementary functions on vectors, compared with those of the C library in double precision. The program tests them
// on vectors of four; -mavx2 -mfma -DPRNN_LANES=8 -DPRNN_AVX=2 and the like compile this file for other vectors.
#include <cfloat>
#include <cmath>
#include <initializer_list>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "tests.h"

#ifndef PRNN_LANES
#define PRNN_LANES 4
#endif

namespace prnn::test {

namespace vectors {
#include "simd.h"
// After simd.h.
#include "simd_math.h"
}  // namespace vectors

namespace {

using namespace vectors;

float float_from(uint32_t bits) { return bits_of<float>(bits); }

// The distance in units of the last place of the float nearest to `exact`, 2^-149 for the denormal ones. Infinity
// counts as 2^128.
double ulps_from(float value, double exact) {
  if (exact != exact || value != value) return (exact != exact) == (value != value) ? 0 : 1e9;
  if (value == float(exact)) {
    if (value == 0 && exact == 0 && std::signbit(value) != std::signbit(exact)) return 1e9;
    if (std::isinf(value)) return 0;
  }
  const double top = std::ldexp(1.0, 128);
  int exponent;
  std::frexp(std::fmin(std::fabs(exact), FLT_MAX), &exponent);
  const double unit = std::ldexp(1.0, std::max(exponent - 24, -149));
  return std::fabs(std::fmax(-top, std::fmin(top, double(value))) - std::fmax(-top, std::fmin(top, exact))) / unit;
}

std::vector<float> special_values() {
  std::vector<float> values = {__builtin_inff(), __builtin_nanf("")};
  const auto add = [&](std::initializer_list<float> more) { values.insert(values.end(), more); };
  add({0.0f, FLT_TRUE_MIN, 1e-40f, FLT_MIN, FLT_MAX, 1e-8f, 2e-8f, 6e-8f});
  add({0.25f, 0.5f, 0.75f, 1.0f, 1.5f, 2.0f, 2.5f, 3.0f, 3.5f});
  add({std::nextafter(0.5f, 0.0f), std::nextafter(1.0f, 0.0f), std::nextafter(1.0f, 2.0f)});
  add({4194303.5f, 4194304.5f, 8388607.5f, 8388608.0f, 8388609.0f, 16777216.0f, 2147483648.0f, 4294967296.0f});
  add({87.33654f, 88.72283f, 88.72284f, 89.0f, 103.97f, 103.98f, 150.0f});          // exp
  add({1.57079637f, 3.14159274f, 252.898209f, 1e4f, 10001.0f});                     // sin and cos
  add({0.707106769f, 0.707106829f, 1.41421354f, 1.41421366f, 3.92f, 3.93f, 4.0f});  // log and erf
  const size_t count = values.size();
  for (size_t i = 0; i < count; ++i) values.push_back(-values[i]);
  return values;
}

// All exponents by an even walk through the bits, and where the functions vary.
std::vector<float> sweep(int64_t thin) {
  std::vector<float> values = special_values();
  const uint32_t stride = uint32_t(32749 * thin);
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += stride) values.push_back(float_from(uint32_t(bits)));
  Random random(3);
  for (const double range : {1.5, 12.0, 110.0, 1e4})
    for (int64_t i = 0; i < 20000 / thin; ++i) values.push_back(float(random.uniform(-range, range)));
  for (int64_t i = 0; i < 2 * 3183; i += thin) values.push_back(float(double(i) * 1.57079632679489662));
  return values;
}

// The largest error over whole vectors of x and y; what is left over at the end is not looked at.
template <class Function>
void expect_close(const char* name, double bound, const std::vector<float>& x, const std::vector<float>& y,
                  Function function, double (*exact)(double, double)) {
  double largest = 0;
  size_t at = 0;
  for (size_t i = 0; i + PRNN_LANES <= x.size(); i += PRNN_LANES) {
    float results[PRNN_LANES];
    store(results, function(load(&x[i]), load(&y[i])));
    for (size_t lane = 0; lane < PRNN_LANES; ++lane) {
      const double off = ulps_from(results[lane], exact(double(x[i + lane]), double(y[i + lane])));
      if (off > largest) largest = off, at = i + lane;
    }
  }
  std::printf("simd_math: %s within %.3f ulp (at %.9g, %.9g)\n", name, largest, double(x[at]), double(y[at]));
  expect(largest <= bound, std::string(name) + " on vectors is off by " + std::to_string(largest) + " ulp at " +
                               std::to_string(x[at]) + ", " + std::to_string(y[at]));
}

#define PRNN_CLOSE(name, bound, expression) \
  expect_close(#name, bound, x, x, [](Vec v, Vec) { return name##_of(v); }, [](double v, double) { return expression; })

void test_one_argument(const std::vector<float>& x) {
  PRNN_CLOSE(exp, 1, std::exp(v));
  PRNN_CLOSE(expm1, 1.5, std::expm1(v));
  PRNN_CLOSE(log, 1, std::log(v));
  PRNN_CLOSE(log1p, 1.6, std::log1p(v));
  PRNN_CLOSE(sin, 2.5, std::sin(v));
  PRNN_CLOSE(cos, 2.5, std::cos(v));
  PRNN_CLOSE(atan, 1.6, std::atan(v));
  PRNN_CLOSE(erf, 1.5, std::erf(v));
  PRNN_CLOSE(erfc, 3, std::erfc(v));
  PRNN_CLOSE(sqrt, 0.5, std::sqrt(v));
  PRNN_CLOSE(abs, 0, std::fabs(v));
  PRNN_CLOSE(floor, 0, std::floor(v));
  PRNN_CLOSE(round, 0, std::nearbyint(v));
  PRNN_CLOSE(trunc, 0, std::trunc(v));
}

#undef PRNN_CLOSE

// torch.minimum and torch.maximum: a NaN of either operand is the result.
double minimum(double x, double y) { return x != x || y != y ? __builtin_nan("") : x < y ? x : y; }
double maximum(double x, double y) { return x != x || y != y ? __builtin_nan("") : x > y ? x : y; }

void test_two_arguments(const std::vector<float>& sweep, int64_t thin) {
  std::vector<float> x, y;
  const auto add = [&](double base, double exponent) { x.push_back(float(base)), y.push_back(float(exponent)); };
  for (const float base : special_values())
    for (const float exponent : special_values()) add(double(base), double(exponent));
  Random random(4);
  for (const float base : sweep) {
    const double logarithm = std::log(std::fabs(double(base)));
    add(double(base), random.uniform(-104, 90) / logarithm);  // all results
    add(double(base), double(random.integer(-12, 12)));
  }
  for (int64_t i = 0; i < 100000 / thin; ++i) add(std::exp(random.uniform(-4, 4)), random.uniform(-8, 8));
  expect_close("pow", 1.2, x, y, pow_of, [](double v, double w) { return std::pow(v, w); });
  expect_close("fmod", 0, x, y, fmod_of, [](double v, double w) { return std::fmod(v, w); });
  for (size_t i = 0; i < x.size(); ++i)
    if (x[i] == 0 && y[i] == 0) x[i] = y[i] = 1;  // which zero is the smaller is left open
  expect_close("min", 0, x, y, min_of, minimum);
  expect_close("max", 0, x, y, max_of, maximum);
}

}  // namespace

void test_simd_math(const Effort& effort) {
  watchdog(200, "the sweep over the functions on vectors");
  const std::vector<float> values = sweep(effort.thin);
  test_one_argument(values);
  test_two_arguments(values, effort.thin);
  const Vec constant = constant_of<Vec>(1.25f);
  for (int lane = 0; lane < PRNN_LANES; ++lane) expect(constant[lane] == 1.25f, "a lane of constant_of is wrong");
  expect(constant_of<float>(1.25f) == 1.25f, "constant_of<float> is wrong");
}

}  // namespace prnn::test
