// A case in memory: its operands, room for its results, and their comparison with the truth.
#pragma once

#include <memory>

#include "reference.h"

namespace prnn::test {

// A [T,B,W] array in memory: (t, b, i) stands at offset + t * step + b * row + i.
struct Array {
  const char* name;
  int64_t T, B, W, offset, step, row;
  Buffer buffer;

  Array(const char* name, Dtype dtype, Layout layout, int64_t T, int64_t B, int64_t W, bool aligned = false)
      : name(name), T(T), B(B), W(W), offset(0), step(B * W), row(W), buffer(dtype, measure(layout), aligned) {}
  // A flat one.
  Array(const char* name, Dtype dtype, int64_t count, bool aligned = false)
      : Array(name, dtype, Layout::dense, 1, 1, count, aligned) {}

  int64_t at(int64_t t, int64_t b, int64_t i) const { return offset + t * step + b * row + i; }
  char* data() { return static_cast<char*>(buffer.data()); }
  Sequence<void> sequence(Dtype dtype) { return {data() + offset * (dtype == Dtype::float32 ? 4 : 2), step, row}; }
  Sequence<const void> view(Dtype dtype) {
    const Sequence<void> same = sequence(dtype);
    return {same.data, same.step, same.row};
  }
  void fill(const std::vector<double>& values) {
    size_t next = 0;
    for (int64_t t = 0; t < T; ++t)
      for (int64_t b = 0; b < B; ++b)
        for (int64_t i = 0; i < W; ++i) buffer.set(at(t, b, i), values[next++]);
  }

 private:
  // Sets the strides; returns how many elements there are up to the last one that counts.
  int64_t measure(Layout layout) {
    if (layout == Layout::halves) offset = W, row = 2 * W, step = 2 * B * W;
    if (layout == Layout::batch_first) row = T * W, step = W;
    if (layout == Layout::gaps) offset = 3, row = W + 5, step = B * (W + 5) + 7;
    return T * B * W == 0 ? 0 : at(T - 1, B - 1, W);
  }
};

// The largest error of an array, relative to the truth's largest element, or to `least` if that is more. Fails where an
// element was not written, or one was that nobody owns, or the error is too large.
inline double compare(const Array& result, const std::vector<double>& truth, double least, double tolerance,
                      const std::string& who) {
  double largest = 1e-30, error = 0;
  int64_t worst = -1, written = 0;
  for (const double value : truth) largest = std::max(largest, __builtin_fabs(value));
  if (largest > 1e-30) largest = std::max(largest, least);  // what is zero is exactly zero
  size_t next = 0;
  for (int64_t t = 0; t < result.T; ++t)
    for (int64_t b = 0; b < result.B; ++b)
      for (int64_t i = 0; i < result.W; ++i) {
        const int64_t at = result.at(t, b, i);
        const double right = truth[next++], value = result.buffer.get(at);
        ++written;
        const double off = value == value ? __builtin_fabs(value - right) / largest : 1e30;  // a NaN, perhaps unwritten
        if (off > error) error = off, worst = int64_t(next) - 1;
      }
  int64_t untouched = 0;
  for (int64_t i = -result.buffer.front(); i < result.buffer.count(); ++i) untouched += result.buffer.untouched(i);
  if (error > tolerance)
    fail(who + ": " + result.name + "[" + std::to_string(worst) + "] is off by " + std::to_string(error) + " of " +
         std::to_string(largest));
  else if (untouched != result.buffer.count() + result.buffer.front() - written)
    fail(who + ": " + result.name + " has been written beyond its elements");
  return error;
}

inline void expect_same(const std::vector<Array>& a, const std::vector<Array>& b, const std::string& who) {
  for (size_t i = 0; i < a.size(); ++i)
    if (!(a[i].buffer == b[i].buffer)) fail(who + ": the bits of " + a[i].name + " differ");
}

// A case in memory. The backward pass is given the reference's results, so that one pass's errors do not hide
// another's.
class Problem {
 public:
  explicit Problem(const Case& of)
      : of(of),
        values(of),
        x("x", of.dtype, of.layout, of.T, of.B, of.width()),
        output("output", of.dtype, of.layout, of.T, of.B, of.H),
        saved("saved", of.dtype, of.T * of.B * of.S() * of.H),
        grad_output("grad_output", of.dtype, of.layout, of.T, of.B, of.H) {
    Reference reference(this->of, values);
    reference.forward(truth);
    reference.backward(truth);
    x.fill(values.x), output.fill(truth.output);
    for (int64_t i = 0; i < saved.buffer.count(); ++i) saved.buffer.set(i, truth.saved[size_t(i)]);
    if (!values.grad_output.empty()) grad_output.fill(values.grad_output);
    layer = {of.cell,
             of.dtype,
             of.reverse,
             of.T,
             of.B,
             of.I,
             of.H,
             x.view(of.dtype),
             place(values.weight_ih, of.dtype),
             place(values.weight_hh, of.dtype),
             place(values.h0, of.dtype),
             floats(values.c0),
             of.lengths ? values.lengths.data() : nullptr,
             nullptr};
    bias_ih = place(values.bias_ih, of.dtype), bias_hh = place(values.bias_hh, of.dtype);
    grad_h_n = place(values.grad_h_n, of.dtype), grad_c_n = floats(values.grad_c_n);
    if (of.resets) {
      resets.reset(new bool[size_t(of.T * of.B)]);
      for (int64_t i = 0; i < of.T * of.B; ++i) resets[size_t(i)] = values.resets[size_t(i)];
      layer.resets = resets.get();
    }
  }
  Problem(const Problem&) = delete;

  // Results: fresh memory, and a pass that points into it.
  std::vector<Array> forward_results(Forward& pass) const {
    std::vector<Array> to;
    to.reserve(4);
    static_cast<Layer&>(pass) = layer;
    pass.bias_ih = bias_ih, pass.bias_hh = bias_hh;
    pass.output = to.emplace_back("output", of.dtype, of.layout, of.T, of.B, of.H).sequence(of.dtype);
    pass.h_n = to.emplace_back("h_n", of.dtype, of.B * of.H).data();
    const auto floats = [&](bool wanted, const char* name, int64_t n) {
      return wanted ? reinterpret_cast<float*>(to.emplace_back(name, Dtype::float32, n).data()) : nullptr;
    };
    pass.c_n = floats(of.has_c(), "c_n", of.B * of.H);
    const bool saves = of.saves && of.S();
    pass.saved = saves ? to.emplace_back("saved", of.dtype, of.T * of.B * of.S() * of.H).data() : nullptr;
    return to;
  }

  std::vector<Array> backward_results(Backward& pass) {
    std::vector<Array> to;
    to.reserve(7);
    static_cast<Layer&>(pass) = layer;
    pass.output = output.view(of.dtype), pass.saved = saved.data();
    pass.grad_output = {};
    if (of.gradients & kGradOutput) pass.grad_output = grad_output.view(of.dtype);
    pass.grad_h_n = grad_h_n, pass.grad_c_n = grad_c_n;
    pass.grad_x = {};
    if (of.gradients & kGradX)
      pass.grad_x = to.emplace_back("grad_x", of.dtype, of.layout, of.T, of.B, of.width()).sequence(of.dtype);
    const auto flat = [&](unsigned which, const char* name, Dtype dtype, int64_t n) -> void* {
      return of.gradients & which ? to.emplace_back(name, dtype, n).data() : nullptr;
    };
    const int64_t GH = of.G() * of.H;
    pass.grad_weight_ih = of.input ? flat(kGradWeightIH, "grad_weight_ih", of.dtype, GH * of.I) : nullptr;
    pass.grad_weight_hh = flat(kGradWeightHH, "grad_weight_hh", of.dtype, GH * of.H);
    pass.grad_bias_ih = of.input ? flat(kGradBiasIH, "grad_bias_ih", of.dtype, GH) : nullptr;
    pass.grad_bias_hh = flat(kGradBiasHH, "grad_bias_hh", of.dtype, GH);
    pass.grad_h0 = flat(kGradH0, "grad_h0", of.dtype, of.B * of.H);
    pass.grad_c0 = static_cast<float*>(of.has_c() ? flat(kGradC0, "grad_c0", Dtype::float32, of.B * of.H) : nullptr);
    return to;
  }

  const std::vector<double>& truth_of(const std::string& name) const {
    const std::pair<const char*, const std::vector<double>*> all[] = {{"output", &truth.output},
                                                                      {"h_n", &truth.h_n},
                                                                      {"c_n", &truth.c_n},
                                                                      {"saved", &truth.saved},
                                                                      {"grad_x", &truth.grad_x},
                                                                      {"grad_gates_h", &truth.grad_gates_h},
                                                                      {"grad_weight_ih", &truth.grad_weight_ih},
                                                                      {"grad_weight_hh", &truth.grad_weight_hh},
                                                                      {"grad_bias_ih", &truth.grad_bias_ih},
                                                                      {"grad_bias_hh", &truth.grad_bias_hh},
                                                                      {"grad_h0", &truth.grad_h0},
                                                                      {"grad_c0", &truth.grad_c0}};
    for (const auto& [known, values] : all)
      if (name == known) return *values;
    std::abort();
  }

  // The largest error of all arrays.
  double check(const std::vector<Array>& results, double tolerance, const std::string& who) const {
    double error = 0;
    for (const Array& result : results) {
      const double least = std::strncmp(result.name, "grad", 4) == 0 ? truth.grad_terms : truth.gate_terms;
      error = std::max(error, compare(result, truth_of(result.name), least, tolerance, of.name() + ", " + who));
    }
    return error;
  }

  const Case of;
  const Values values;
  Truth truth;
  Layer layer;

 private:
  const void* place(const std::vector<double>& numbers, Dtype dtype) {
    if (numbers.empty() && &numbers != &values.h0) return nullptr;
    operands.push_back(std::make_unique<Array>("operand", dtype, int64_t(numbers.size()), of.seed % 2 == 0));
    operands.back()->fill(numbers);
    return operands.back()->data();
  }
  const float* floats(const std::vector<double>& numbers) {
    return static_cast<const float*>(place(numbers, Dtype::float32));
  }

  Array x, output, saved, grad_output;
  std::vector<std::unique_ptr<Array>> operands;
  std::unique_ptr<bool[]> resets;
  const void *bias_ih, *bias_hh, *grad_h_n;
  const float* grad_c_n;
};

}  // namespace prnn::test
