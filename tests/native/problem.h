// One layer to be run: its sizes and options, and numbers for all its operands.
// Shapes: T time steps, B batch, I input size, H hidden size, G gates, S saved.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "halves.h"
#include "layer_args.h"

namespace prnn::test {

// How x, output and their gradients lie in memory.
enum class Layout { dense, halves, batch_first, gaps };  // halves: the second half of [T,B,2*W], as of two directions

// What a backward pass is given and asked for, bits.
enum : unsigned {
  kGradOutput = 1,
  kGradHN = 2,
  kGradCN = 4,
  kGradX = 8,
  kGradWeightIH = 16,
  kGradWeightHH = 32,
  kGradBiasIH = 64,
  kGradBiasHH = 128,
  kGradH0 = 256,
  kGradC0 = 512,
  kAll = 1023
};

struct Case {
  Cell cell;
  Dtype dtype;
  int64_t T, B, I, H;
  bool lengths = false, resets = false, reverse = false;
  bool input = true, biases = true;  // input: weight_ih is given; without it x is the gates' share, [T,B,G*H]
  bool saves = true;                 // what the backward pass needs is wanted
  bool infinite = false;             // a weight is infinite
  Layout layout = Layout::dense;
  unsigned gradients = kAll;
  uint64_t seed = 1;

  int64_t G() const { return gates(cell); }
  int64_t S() const { return saved(cell); }
  int64_t width() const { return input ? I : G() * H; }  // of x
  bool has_c() const { return prnn::has_c(cell); }

  std::string name() const {
    const char* layouts[] = {"dense", "halves", "batch_first", "gaps"};
    std::string text = name_of(cell);
    text += dtype == Dtype::float32 ? " fp32" : dtype == Dtype::bfloat16 ? " bf16" : " fp16";
    for (const auto& [letter, size] : {std::pair{" T", T}, {" B", B}, {" I", I}, {" H", H}})
      text += letter + std::to_string(size);
    if (lengths) text += " lengths";
    if (resets) text += " resets";
    if (reverse) text += " reverse";
    if (!input) text += " gates_x";
    if (!biases) text += " no_bias";
    if (!saves) text += " no_saved";
    if (gradients != kAll) text += " gradients=" + std::to_string(gradients);
    return text + " " + layouts[int(layout)] + " seed=" + std::to_string(seed);
  }
};

inline std::vector<Cell> all_cells() {
  std::vector<Cell> cells;
  for (int64_t number = 0; number < kCellCount; ++number) cells.push_back(static_cast<Cell>(number));
  return cells;
}

inline double round_to(Dtype dtype, double x) {
  const float whole = static_cast<float>(x);
  if (dtype == Dtype::float32) return whole;
  return dtype == Dtype::bfloat16 ? from_bfloat16(to_bfloat16(whole)) : from_float16(to_float16(whole));
}

// The operands, dense and in double, already rounded to what their dtype can hold. Padding is NaN: nobody may look.
struct Values {
  std::vector<double> x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, grad_output, grad_h_n, grad_c_n;
  std::vector<int64_t> lengths;  // [B], also below 0 and above T
  std::vector<char> resets;      // [T,B]

  explicit Values(const Case& of) {
    Random random(of.seed);
    const int64_t T = of.T, B = of.B, H = of.H, GH = of.G() * H;
    const auto fill = [&](std::vector<double>& to, int64_t n, double size, Dtype dtype) {
      to.resize(size_t(n));
      for (double& value : to) value = round_to(dtype, random.uniform(-size, size));
    };
    fill(x, T * B * of.width(), 1, of.dtype);
    if (of.input) fill(weight_ih, GH * of.I, 1.5 / std::max<double>(1, double(of.I) / 4), of.dtype);
    // Uniform numbers up to a have a standard deviation of 0.58 a: no gradient explodes in 300 steps.
    fill(weight_hh, GH * H, 1.4 / __builtin_sqrt(double(H)), of.dtype);
    if (of.infinite) weight_hh[0] = __builtin_inf();
    if (of.biases && of.input) fill(bias_ih, GH, 0.5, of.dtype);
    if (of.biases) fill(bias_hh, GH, 0.5, of.dtype);
    fill(h0, B * H, 1, of.dtype);
    if (of.has_c()) fill(c0, B * H, 1, Dtype::float32);
    if (of.gradients & kGradOutput) fill(grad_output, T * B * H, 1, of.dtype);
    if (of.gradients & kGradHN) fill(grad_h_n, B * H, 1, of.dtype);
    if (of.has_c() && of.gradients & kGradCN) fill(grad_c_n, B * H, 1, Dtype::float32);
    if (of.lengths) {
      for (int64_t b = 0; b < B; ++b) lengths.push_back(random.integer(-1, T + 1));
      if (B > 1) lengths[size_t(of.seed) % size_t(B)] = T + 5;  // somebody runs to the end,
      if (B > 2) lengths[size_t(of.seed + 1) % size_t(B)] = 0;  // somebody not at all
      for (int64_t t = 0; t < T; ++t)
        for (int64_t b = 0; b < B; ++b) {
          if (t < lengths[size_t(b)]) continue;
          for (int64_t i = 0; i < of.width(); ++i) x[size_t((t * B + b) * of.width() + i)] = __builtin_nan("");
          for (int64_t i = 0; i < H && !grad_output.empty(); ++i)
            grad_output[size_t((t * B + b) * H + i)] = __builtin_nan("");
        }
    }
    for (int64_t i = 0; of.resets && i < T * B; ++i) resets.push_back(random.chance(0.25));
  }
};

// A vector of elements that begin with a pattern no kernel writes, exactly as long as it must be: an address
// sanitizer sees what lies beyond. More elements in front: one makes the data as badly aligned as a view's can be, 16
// bytes as well as a whole tensor's.
class Buffer {
 public:
  Buffer(Dtype dtype, int64_t count, bool aligned = false)
      : dtype_(dtype), front_(aligned ? 16 / size() : 1), bytes_(size_t((front_ + count) * size())) {
    for (int64_t i = -front_; i < count; ++i) write(i, untouched());
  }
  void* data() { return bytes_.data() + front_ * size(); }
  const void* data() const { return bytes_.data() + front_ * size(); }
  int64_t count() const { return int64_t(bytes_.size()) / size() - front_; }
  int64_t front() const { return front_; }
  void set(int64_t i, double value) {
    const float whole = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &whole, 4);
    write(i, dtype_ == Dtype::float32 ? bits : dtype_ == Dtype::bfloat16 ? to_bfloat16(whole) : to_float16(whole));
  }
  double get(int64_t i) const {
    const uint32_t bits = read(i);
    if (dtype_ != Dtype::float32) return (dtype_ == Dtype::bfloat16 ? from_bfloat16 : from_float16)(uint16_t(bits));
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }
  bool untouched(int64_t i) const { return read(i) == untouched(); }
  bool operator==(const Buffer& other) const { return bytes_ == other.bytes_; }

 private:
  uint32_t untouched() const { return dtype_ == Dtype::float32 ? 0x7FDBADADu : 0x7FDB; }  // a NaN
  int64_t size() const { return dtype_ == Dtype::float32 ? 4 : 2; }
  uint32_t read(int64_t i) const {
    uint32_t bits = 0;  // little-endian
    std::memcpy(&bits, bytes_.data() + (front_ + i) * size(), size_t(size()));
    return bits;
  }
  void write(int64_t i, uint32_t bits) { std::memcpy(bytes_.data() + (front_ + i) * size(), &bits, size_t(size())); }

  Dtype dtype_;
  int64_t front_;
  std::vector<char> bytes_;
};

}  // namespace prnn::test
