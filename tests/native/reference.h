// One layer in double precision, by plain loops from the equations: what the kernels are compared with.
// Shapes: T time steps, B batch, I input size, H hidden size, G gates, S saved.
#pragma once

#include "problem.h"

namespace prnn::test {

// Dense results in double.
struct Truth {
  std::vector<double> output, h_n, c_n, saved;
  std::vector<double> grad_x, grad_gates_h, grad_weight_ih, grad_weight_hh, grad_bias_ih, grad_bias_hh, grad_h0,
      grad_c0;
  // Of the sums of products with weight_hh, forward and backward: the largest norm of one sum's terms. Rounding makes
  // errors of this size where the terms cancel, however small their sum.
  double gate_terms = 0, grad_terms = 0;
};

// The order of steps, as prnn/ops/layer.py makes it: x and resets reversed within each sample's length, then forward.
struct Order {
  std::vector<int64_t> length;             // [B]
  std::vector<std::vector<int64_t>> time;  // [B][s]
  std::vector<std::vector<char>> reset;    // [B][s]

  Order(const Case& of, const Values& values) {
    for (int64_t b = 0; b < of.B; ++b) {
      int64_t n = of.lengths ? values.lengths[size_t(b)] : of.T;
      n = n < 0 ? 0 : n > of.T ? of.T : n;
      const auto reset_at = [&](int64_t t) { return of.resets && t < of.T && values.resets[size_t(t * of.B + b)]; };
      std::vector<int64_t> times;
      std::vector<char> resets;
      for (int64_t s = 0; s < n; ++s) {
        times.push_back(of.reverse ? n - 1 - s : s);
        // Backwards, the border before step t + 1 is crossed on the way to t; none is crossed to the first.
        resets.push_back(of.reverse ? s > 0 && reset_at(times.back() + 1) : reset_at(s));
      }
      length.push_back(n), time.push_back(times), reset.push_back(resets);
    }
  }
};

class Reference {
 public:
  // `rounds`: h and what is saved are rounded to the dtype after each step, as the kernels must; false to
  // differentiate numerically.
  Reference(const Case& of, const Values& values, bool rounds = true)
      : of(of), v(values), order(of, values), rounds(rounds), H(of.H), GH(of.G() * of.H), W(of.width()) {}

  void forward(Truth& to) const {
    to.output.assign(size_t(of.T * of.B * H), 0);
    to.saved.assign(size_t(of.T * of.B * of.S() * H), 0);
    to.h_n = v.h0, to.c_n = v.c0;
    for (int64_t b = 0; b < of.B; ++b) {
      double* h = to.h_n.data() + b * H;
      double* c = of.has_c() ? to.c_n.data() + b * H : nullptr;
      for (int64_t s = 0; s < order.length[size_t(b)]; ++s) {
        const int64_t t = order.time[size_t(b)][size_t(s)], row = t * of.B + b;
        if (order.reset[size_t(b)][size_t(s)])
          for (int64_t i = 0; i < H; ++i) {
            h[i] = 0;
            if (c) c[i] = 0;
          }
        std::vector<double> x(size_t(GH), 0.0), a(size_t(GH), 0.0);
        for (int64_t r = 0; r < GH; ++r) {
          x[size_t(r)] = of.input ? dot(v.weight_ih, r, W, v.x.data() + row * W) : v.x[size_t(row * W + r)];
          if (!v.bias_ih.empty()) x[size_t(r)] += v.bias_ih[size_t(r)];
          double squares = 0;
          a[size_t(r)] = dot(v.weight_hh, r, H, h, &squares) + (v.bias_hh.empty() ? 0 : v.bias_hh[size_t(r)]);
          to.gate_terms = std::max(to.gate_terms, __builtin_sqrt(squares));
        }
        for (int64_t i = 0; i < H; ++i) {
          double* saved = to.saved.data() + row * of.S() * H + i;
          cell(x.data() + i, a.data() + i, h[i], c ? &c[i] : nullptr, saved);
          if (rounds) h[i] = round_to(of.dtype, h[i]);
          for (int64_t j = 0; rounds && j < of.S(); ++j) saved[j * H] = round_to(of.dtype, saved[j * H]);
          to.output[size_t(row * H + i)] = h[i];
        }
      }
    }
  }

  // After forward().
  void backward(Truth& to) const {
    to.grad_x.assign(size_t(of.T * of.B * W), 0), to.grad_gates_h.assign(size_t(of.T * of.B * GH), 0);
    to.grad_weight_ih.assign(size_t(of.input ? GH * of.I : 0), 0), to.grad_weight_hh.assign(size_t(GH * H), 0);
    to.grad_bias_ih.assign(size_t(GH), 0), to.grad_bias_hh.assign(size_t(GH), 0);
    to.grad_h0.assign(size_t(of.B * H), 0), to.grad_c0.assign(size_t(of.has_c() ? of.B * H : 0), 0);
    for (int64_t b = 0; b < of.B; ++b) {
      double* dh = to.grad_h0.data() + b * H;
      std::vector<double> dc(size_t(H), 0.0);
      for (int64_t i = 0; i < H; ++i) {
        dh[i] = v.grad_h_n.empty() ? 0 : v.grad_h_n[size_t(b * H + i)];
        dc[size_t(i)] = v.grad_c_n.empty() ? 0 : v.grad_c_n[size_t(b * H + i)];
      }
      for (int64_t s = order.length[size_t(b)]; s-- > 0;) step_back(to, b, s, dh, dc.data());
      for (int64_t i = 0; i < H && of.has_c(); ++i) to.grad_c0[size_t(b * H + i)] = dc[size_t(i)];
    }
  }

 private:
  // Adds the terms' squares to `squares`.
  static double dot(const std::vector<double>& matrix, int64_t row, int64_t n, const double* x,
                    double* squares = nullptr) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double term = matrix[size_t(row * n + i)] * x[i];
      sum += term;
      if (squares) *squares += term * term;
    }
    return sum;
  }
  [[noreturn]] void no_equations() const {
    throw std::runtime_error(std::string("tests/native/reference.h has no equations of ") + name_of(of.cell));
  }
  static double sigmoid(double x) { return 1 / (1 + __builtin_exp(-x)); }

  // x, a: the input's and the state's share of this unit's gates, H apart; likewise saved.
  void cell(const double* x, const double* a, double& h, double* c, double* saved) const {
    if (of.cell == Cell::rnn_relu) {
      h = x[0] + a[0] > 0 ? x[0] + a[0] : 0;
    } else if (of.cell == Cell::rnn_tanh) {
      h = __builtin_tanh(x[0] + a[0]);
    } else if (of.cell == Cell::gru) {
      const double r = sigmoid(x[0] + a[0]), z = sigmoid(x[H] + a[H]), n = __builtin_tanh(x[2 * H] + r * a[2 * H]);
      h = (1 - z) * n + z * h;
      saved[0] = r, saved[H] = z, saved[2 * H] = n, saved[3 * H] = a[2 * H];
    } else if (of.cell == Cell::lstm) {
      const double i = sigmoid(x[0] + a[0]), f = sigmoid(x[H] + a[H]);
      const double g = __builtin_tanh(x[2 * H] + a[2 * H]), o = sigmoid(x[3 * H] + a[3 * H]);
      *c = f * *c + i * g;
      h = o * __builtin_tanh(*c);
      saved[0] = i, saved[H] = f, saved[2 * H] = g, saved[3 * H] = o, saved[4 * H] = *c;
    } else {
      no_equations();
    }
  }

  // dx, da: the gradients of x and a above. dh: in of h, out what reaches h_prev past the matrix product.
  void cell_back(const double* saved, double h, double h_prev, double c_prev, double& dh, double& dc, double* dx,
                 double* da) const {
    if (of.cell == Cell::rnn_relu) {
      dx[0] = da[0] = h > 0 ? dh : 0;
      dh = 0;
    } else if (of.cell == Cell::rnn_tanh) {
      dx[0] = da[0] = dh * (1 - h * h);
      dh = 0;
    } else if (of.cell == Cell::gru) {
      const double r = saved[0], z = saved[H], n = saved[2 * H], a_n = saved[3 * H];
      const double dn = dh * (1 - z) * (1 - n * n), dz = dh * (h_prev - n), dr = dn * a_n;
      dx[0] = da[0] = dr * r * (1 - r);
      dx[H] = da[H] = dz * z * (1 - z);
      dx[2 * H] = dn, da[2 * H] = dn * r;
      dh *= z;
    } else if (of.cell == Cell::lstm) {
      const double i = saved[0], f = saved[H], g = saved[2 * H], o = saved[3 * H], u = __builtin_tanh(saved[4 * H]);
      dc += dh * o * (1 - u * u);
      dx[0] = da[0] = dc * g * i * (1 - i);
      dx[H] = da[H] = dc * c_prev * f * (1 - f);
      dx[2 * H] = da[2 * H] = dc * i * (1 - g * g);
      dx[3 * H] = da[3 * H] = dh * u * o * (1 - o);
      dc *= f;
      dh = 0;
    } else {
      no_equations();
    }
  }

  void step_back(Truth& to, int64_t b, int64_t s, double* dh, double* dc) const {
    const int64_t t = order.time[size_t(b)][size_t(s)], row = t * of.B + b;
    const bool reset = order.reset[size_t(b)][size_t(s)];
    const int64_t before = s ? order.time[size_t(b)][size_t(s - 1)] * of.B + b : 0;
    std::vector<double> h_prev(size_t(H), 0.0), dx(size_t(GH), 0.0), da(size_t(GH), 0.0), squares(size_t(H), 0.0);
    for (int64_t i = 0; i < H; ++i) {
      double c_prev = 0;
      if (!reset) {
        h_prev[size_t(i)] = s ? to.output[size_t(before * H + i)] : v.h0[size_t(b * H + i)];
        if (of.has_c()) c_prev = s ? to.saved[size_t((before * of.S() + of.S() - 1) * H + i)] : v.c0[size_t(b * H + i)];
      }
      if (!v.grad_output.empty()) dh[i] += v.grad_output[size_t(row * H + i)];
      cell_back(to.saved.data() + row * of.S() * H + i, to.output[size_t(row * H + i)], h_prev[size_t(i)], c_prev,
                dh[i], dc[i], dx.data() + i, da.data() + i);
    }
    for (int64_t r = 0; r < GH; ++r) {
      to.grad_bias_ih[size_t(r)] += dx[size_t(r)], to.grad_bias_hh[size_t(r)] += da[size_t(r)];
      to.grad_gates_h[size_t(row * GH + r)] = da[size_t(r)];
      for (int64_t i = 0; i < H; ++i) {
        to.grad_weight_hh[size_t(r * H + i)] += da[size_t(r)] * h_prev[size_t(i)];
        const double term = da[size_t(r)] * v.weight_hh[size_t(r * H + i)];
        dh[i] += term, squares[size_t(i)] += term * term;
      }
      if (!of.input) to.grad_x[size_t(row * W + r)] = dx[size_t(r)];
      for (int64_t i = 0; of.input && i < of.I; ++i) {
        to.grad_weight_ih[size_t(r * W + i)] += dx[size_t(r)] * v.x[size_t(row * W + i)];
        to.grad_x[size_t(row * W + i)] += dx[size_t(r)] * v.weight_ih[size_t(r * W + i)];
      }
    }
    for (const double square : squares) to.grad_terms = std::max(to.grad_terms, __builtin_sqrt(square));
    if (reset)
      for (int64_t i = 0; i < H; ++i) dh[i] = dc[i] = 0;
  }

  const Case& of;
  const Values& v;
  const Order order;
  const bool rounds;
  const int64_t H, GH, W;
};

}  // namespace prnn::test
