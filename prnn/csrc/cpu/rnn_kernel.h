// The RNN kernels, written once and compiled once per instruction set.
// A kernel file sets the target, defines PRNN_ISA, PRNN_LANES and PRNN_ISA_NAME, and includes this.
//
// Nothing here may instantiate a template or an inline function of the standard library: compiled for a wide
// instruction set, the linker could pick that copy for the whole program.

#include <cstddef>
#include <cstdint>

#include "rnn.h"

namespace prnn::cpu::PRNN_ISA {

#include "simd.h"
// After simd.h: the cells compute with its tanh_of.
#include "../cells.h"

constexpr int64_t kLanes = PRNN_LANES;
// Samples that share each load of a weight; more need more accumulators than there are registers.
constexpr int kMaxRows = 4;

// acc[m][v] = sum_k rows[m][k] * panel[v][k] for ROWS samples and PANELS panels of units. Each element is summed in
// the order of k whatever ROWS and PANELS are, so a sample's bits do not depend on its neighbours.
template <int ROWS, int PANELS>
static inline void product(const float* const* rows, const float* packed, int64_t H, Vec (&acc)[ROWS][PANELS]) {
  for (int m = 0; m < ROWS; ++m)
    for (int v = 0; v < PANELS; ++v) acc[m][v] = Vec{};
  const float* panels[PANELS];
  for (int v = 0; v < PANELS; ++v) panels[v] = packed + v * H * kLanes;
  for (int64_t k = 0; k < H; ++k) {
    Vec weight[PANELS];
    for (int v = 0; v < PANELS; ++v) weight[v] = load(panels[v] + k * kLanes);
    for (int m = 0; m < ROWS; ++m) {
      const Vec state = Vec{} + rows[m][k];
      for (int v = 0; v < PANELS; ++v) acc[m][v] += state * weight[v];
    }
  }
}

// What happens to a finished sum of the forward pass: h = cell(sum + gates_x + bias).
template <class Cell>
struct Activate {
  const float* gates_x[kMaxRows];
  const float* bias;
  float* out[kMaxRows];

  inline void finish(int m, int64_t unit, int64_t count, Vec sum) const {
    if (count == kLanes) {
      Vec z = sum + load(gates_x[m] + unit);
      if (bias) z += load(bias + unit);
      store(out[m] + unit, Cell::forward(z));
    } else {
      Vec z = sum + load_part(gates_x[m] + unit, count);
      if (bias) z += load_part(bias + unit, count);
      store_part(out[m] + unit, Cell::forward(z), count);
    }
  }
};

// What happens to a finished sum of the backward pass: it is the gradient of the previous state.
struct Store {
  float* out[kMaxRows];

  inline void finish(int m, int64_t unit, int64_t count, Vec sum) const {
    if (count == kLanes)
      store(out[m] + unit, sum);
    else
      store_part(out[m] + unit, sum, count);
  }
};

// All units of ROWS samples: PANELS panels at a time, then half as many for the rest, down to one.
template <int ROWS, int PANELS, class Epilogue>
static inline void units(const float* const* rows, const float* packed, int64_t H, int64_t first,
                         const Epilogue& epilogue) {
  int64_t unit = first;
  const int64_t full = (H + kLanes - 1) / kLanes * kLanes;
  for (; unit + PANELS * kLanes <= full; unit += PANELS * kLanes) {
    Vec acc[ROWS][PANELS];
    product<ROWS, PANELS>(rows, packed + unit * H, H, acc);
    for (int m = 0; m < ROWS; ++m)
      for (int v = 0; v < PANELS; ++v) {
        const int64_t at = unit + v * kLanes;
        epilogue.finish(m, at, H - at < kLanes ? H - at : kLanes, acc[m][v]);
      }
  }
  if constexpr (PANELS > 1) units<ROWS, PANELS / 2>(rows, packed, H, unit, epilogue);
}

// The number of panels keeps ROWS * PANELS accumulators in registers, and at least 8 of them for the latency of FMA.
template <class Epilogue>
static inline void units_of(int count, const float* const* rows, const float* packed, int64_t H,
                            const Epilogue& epilogue) {
  if (count == 4)
    units<4, PRNN_LANES == 16 ? 4 : 2>(rows, packed, H, 0, epilogue);
  else if (count == 2)
    units<2, 4>(rows, packed, H, 0, epilogue);
  else
    units<1, 8>(rows, packed, H, 0, epilogue);
}

static inline bool is_alive(const int64_t* lengths, int64_t b, int64_t t) { return !lengths || t < lengths[b]; }

// Collects samples of [b, end) alive at step t into `found` and returns how many: 4, 2, 1 or 0. Advances b.
static inline int gather(const int64_t* lengths, int64_t t, int64_t& b, int64_t end, int64_t (&found)[kMaxRows]) {
  int count = 0;
  int64_t after[kMaxRows];
  while (b < end && count < kMaxRows) {
    if (is_alive(lengths, b, t)) {
      found[count] = b;
      after[count++] = b + 1;
    }
    ++b;
  }
  if (count == 3) b = after[--count - 1];  // there is no block of three: the third comes with the next call
  return count;
}

template <class Cell>
static void forward_cell(const RnnForward& pass, int64_t begin, int64_t end) {
  const int64_t H = pass.H, step = pass.B * H;
  for (int64_t b = begin; b < end; ++b)
    if (pass.T == 0 || !is_alive(pass.lengths, b, 0))
      for (int64_t j = 0; j < H; ++j) pass.h_n[b * H + j] = pass.h0[b * H + j];
  for (int64_t t = 0; t < pass.T; ++t) {
    const float* previous = t ? pass.output + (t - 1) * step : pass.h0;
    float* current = pass.output + t * step;
    int64_t found[kMaxRows];
    for (int64_t b = begin; b < end;) {
      const int count = gather(pass.lengths, t, b, end, found);
      if (!count) break;
      const float* rows[kMaxRows];
      Activate<Cell> epilogue;
      epilogue.bias = pass.bias;
      for (int m = 0; m < count; ++m) {
        const bool reset = pass.resets && pass.resets[t * pass.B + found[m]];
        rows[m] = reset ? pass.zeros : previous + found[m] * H;
        epilogue.gates_x[m] = pass.gates_x + t * step + found[m] * H;
        epilogue.out[m] = current + found[m] * H;
      }
      units_of(count, rows, pass.packed, H, epilogue);
    }
    for (int64_t b = begin; b < end; ++b) {
      float* out = current + b * H;
      const bool alive = is_alive(pass.lengths, b, t);
      const bool last = alive && (t + 1 == pass.T || !is_alive(pass.lengths, b, t + 1));
      for (int64_t j = 0; !alive && j < H; ++j) out[j] = 0.0f;
      for (int64_t j = 0; last && j < H; ++j) pass.h_n[b * H + j] = out[j];
    }
  }
}

template <class Cell>
static void backward_cell(const RnnBackward& pass, int64_t begin, int64_t end) {
  const int64_t H = pass.H, step = pass.B * H;
  for (int64_t i = begin * H; i < end * H; ++i) pass.grad_h0[i] = pass.grad_h_n ? pass.grad_h_n[i] : 0.0f;
  for (int64_t t = pass.T; t-- > 0;) {
    float* grad_gates = pass.grad_gates + t * step;
    for (int64_t b = begin; b < end; ++b) {
      const bool alive = is_alive(pass.lengths, b, t);
      const float* grad_output = pass.grad_output ? pass.grad_output + t * step + b * H : nullptr;
      const float* h = pass.output + t * step + b * H;
      for (int64_t j = 0; j < H; ++j) {
        float grad_h = pass.grad_h0[b * H + j];
        if (grad_output) grad_h += grad_output[j];
        grad_gates[b * H + j] = alive ? Cell::backward(grad_h, h[j]) : 0.0f;
      }
    }
    int64_t found[kMaxRows];
    for (int64_t b = begin; b < end;) {
      const int count = gather(pass.lengths, t, b, end, found);
      if (!count) break;
      const float* rows[kMaxRows];
      Store epilogue;
      for (int m = 0; m < count; ++m) {
        rows[m] = grad_gates + found[m] * H;
        epilogue.out[m] = pass.grad_h0 + found[m] * H;
      }
      units_of(count, rows, pass.packed, H, epilogue);
    }
    for (int64_t b = begin; pass.resets && b < end; ++b)
      if (pass.resets[t * pass.B + b] && is_alive(pass.lengths, b, t))
        for (int64_t j = 0; j < H; ++j) pass.grad_h0[b * H + j] = 0.0f;
  }
}

static void forward(const RnnForward& pass, int64_t begin, int64_t end) {
  pass.relu ? forward_cell<RnnRelu>(pass, begin, end) : forward_cell<RnnTanh>(pass, begin, end);
}

static void backward(const RnnBackward& pass, int64_t begin, int64_t end) {
  pass.relu ? backward_cell<RnnRelu>(pass, begin, end) : backward_cell<RnnTanh>(pass, begin, end);
}

static constexpr RnnKernels kKernels = {PRNN_ISA_NAME, kLanes, forward, backward};

}  // namespace prnn::cpu::PRNN_ISA
