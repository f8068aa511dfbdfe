// tanh, sigmoid and the rounding to bfloat16 of the kernels that run here, through a layer whose weights are zero.
#include <cfloat>
#include <cmath>

#include "kernels.h"
#include "parallels.h"
#include "run.h"
#include "tests.h"

namespace prnn::test {

namespace {

float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// The distance in units of the last place of the float nearest to `exact`.
double ulps(float value, double exact) {
  int exponent;
  std::frexp(exact, &exponent);
  return std::fabs(double(value) - exact) / std::ldexp(1.0, std::max(exponent - 24, -149));
}

// An LSTM of one step whose gates are all x: `saved` then has sigmoid(x) as i and tanh(x) as g.
class Sweep {
 public:
  static constexpr int64_t B = 2048, H = 16;

  void add(float x) {
    waiting_.push_back(x);
    if (int64_t(waiting_.size()) == B * H) run();
  }

  void run() {
    if (waiting_.empty()) return;
    waiting_.resize(size_t(B * H), 0.0f);
    std::vector<float> gates(size_t(B * 4 * H)), weight(size_t(4 * H * H)), zeros(size_t(B * H));
    std::vector<float> output(zeros), h_n(zeros), c_n(zeros), saved(size_t(B * 5 * H));
    for (size_t i = 0; i < gates.size(); ++i) gates[i] = waiting_[i / (4 * H) * H + i % H];
    Forward pass{};
    static_cast<Layer&>(pass) = {
        Cell::lstm,    Dtype::float32, false,        1,       B,      0, H, {gates.data(), B * 4 * H, 4 * H}, nullptr,
        weight.data(), zeros.data(),   zeros.data(), nullptr, nullptr};
    pass.output = {output.data(), B * H, H}, pass.h_n = h_n.data(), pass.c_n = c_n.data(), pass.saved = saved.data();
    cpu::forward(&pass, 1, 1, nullptr);
    for (size_t i = 0; i < waiting_.size(); ++i) {
      const float* row = saved.data() + i / H * 5 * H + i % H;
      check(waiting_[i], row[0], row[2 * H]);
    }
    count += int64_t(waiting_.size());
    waiting_.clear();
  }

  double tanh_ulps = 0, sigmoid_ulps = 0;
  float tanh_at = 0, sigmoid_at = 0;
  int64_t count = 0;

 private:
  void check(float x, float sigmoid, float tanh) {
    if (x != x) {
      expect(sigmoid != sigmoid, "sigmoid(NaN) is a number");
      expect(tanh != tanh, "tanh(NaN) is a number");
      return;
    }
    const double off = ulps(tanh, std::tanh(double(x)));
    if (!(off <= tanh_ulps)) tanh_ulps = off == off ? off : 1e9, tanh_at = x;
    expect(std::fabs(tanh) <= 1 && sigmoid >= 0 && sigmoid <= 1, "beyond the range, at " + std::to_string(x));
    const double exact = 1 / (1 + std::exp(-double(x)));
    if (x < -87) {
      expect(std::fabs(sigmoid - exact) < 1e-37, "sigmoid(" + std::to_string(x) + ") is off by 1e-37");
      return;
    }
    const double away = ulps(sigmoid, exact);
    if (!(away <= sigmoid_ulps)) sigmoid_ulps = away == away ? away : 1e9, sigmoid_at = x;
  }

  std::vector<float> waiting_;
};

// h = bfloat16(x + bias) of a ReLU layer, to the bit: nearest, ties to even.
void test_rounding() {
  constexpr int64_t B = 4096, H = 6;
  Random random(5);
  Buffer x(Dtype::bfloat16, B * H), weight(Dtype::bfloat16, H * H), bias(Dtype::bfloat16, H),
      h0(Dtype::bfloat16, B * H);
  Buffer output(Dtype::bfloat16, B * H), h_n(Dtype::bfloat16, B * H);
  for (int64_t i = 0; i < B * H; ++i) x.set(i, random.uniform(0, 4)), h0.set(i, 0);
  for (int64_t i = 0; i < H * H; ++i) weight.set(i, 0);
  for (int64_t i = 0; i < H; ++i) bias.set(i, std::ldexp(1.0 + double(i % 2) / 128, int(-i - 4)));  // many ties
  for (int64_t i = 0; i < H; ++i) x.set(i, __builtin_nan(""));
  for (int64_t i = H; i < 2 * H; ++i) x.set(i, __builtin_inf());
  for (int64_t i = 2 * H; i < 3 * H; ++i) x.set(i, FLT_MAX);
  Forward pass{};
  static_cast<Layer&>(pass) = {
      Cell::rnn_relu,       Dtype::bfloat16, false,         1,         B,       0,       H,
      {x.data(), B * H, H}, nullptr,         weight.data(), h0.data(), nullptr, nullptr, nullptr};
  pass.bias_hh = bias.data(), pass.output = {output.data(), B * H, H}, pass.h_n = h_n.data();
  cpu::forward(&pass, 1, 1, nullptr);
  int64_t ties = 0;
  for (int64_t i = 0; i < B * H; ++i) {
    const float sum = float(x.get(i)) + float(bias.get(i % H));
    uint32_t bits;
    std::memcpy(&bits, &sum, 4);
    ties += (bits & 0xFFFF) == 0x8000;
    const double right = round_to(Dtype::bfloat16, sum), value = output.get(i);
    const bool same = right == right ? value == right : value != value && !output.untouched(i);
    expect(same, std::to_string(sum) + " is rounded to " + std::to_string(value));
  }
  expect(ties > 100, "no ties among the sums to be rounded");
}

// sum += share, rounded once, whatever the parallel region.
void test_add() {
  for (const Dtype dtype : {Dtype::float32, Dtype::bfloat16})
    for (const int64_t n : {0, 1, 77, 65536, 200003})
      for (const Kind& kind : kinds(1)) {
        if (kind.slow) continue;
        Random random(uint64_t(n) + 1);
        Buffer sum(dtype, n), share(dtype, n);
        std::vector<double> right;
        for (int64_t i = 0; i < n; ++i) {
          sum.set(i, random.uniform(-2, 2)), share.set(i, std::ldexp(random.uniform(-2, 2), int(-i % 9)));
          if (i == 5) share.set(i, __builtin_nan(""));
          right.push_back(round_to(dtype, float(sum.get(i)) + float(share.get(i))));
        }
        cpu::add(dtype, sum.data(), share.data(), n, kind.parallel);
        int64_t wrong = 0;
        for (int64_t i = 0; i < n; ++i) {
          const double value = sum.get(i);
          wrong += i == 5 ? value == value : value != right[size_t(i)];
        }
        expect(!wrong, std::string("add is wrong by a region that runs its ranges: ") + kind.name);
      }
}

}  // namespace

void test_math(const Effort& effort) {
  watchdog(200, "the sweep over tanh and sigmoid");
  Sweep sweep;
  const uint32_t stride = uint32_t(997 * effort.thin);
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += stride) sweep.add(float_of(uint32_t(bits)));
  // Where the result varies, more closely than an even walk through the bits does.
  for (int64_t i = -200000 / effort.thin; i <= 200000 / effort.thin; ++i)
    sweep.add(float(double(i) * double(effort.thin) * 5.1e-4)),
        sweep.add(float(double(i) * double(effort.thin) * 1e-4));
  const float special[] = {0.0f,   1e-45f, 1e-40f, FLT_MIN,          FLT_MAX,           9.01f, 9.02f, 9.03f, 87.0f,
                           86.99f, 88.8f,  104.0f, __builtin_inff(), __builtin_nanf("")};
  for (const float x : special) sweep.add(x), sweep.add(-x);
  for (const uint32_t bits : {0x7F800001u, 0xFF800001u, 0x7FFFFFFFu, 0xFFFFFFFFu}) sweep.add(float_of(bits));
  sweep.run();
  std::printf("math: %lld inputs; tanh within %.3f ulp (at %g), sigmoid within %.3f ulp (at %g)\n",
              (long long)sweep.count, sweep.tanh_ulps, double(sweep.tanh_at), sweep.sigmoid_ulps,
              double(sweep.sigmoid_at));
  expect(sweep.tanh_ulps < 3, "tanh is off by 3 ulp or more");
  expect(sweep.sigmoid_ulps < 3, "sigmoid is off by 3 ulp or more");
  test_rounding();
  test_add();
}

}  // namespace prnn::test
