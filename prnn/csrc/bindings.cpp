// torch.ops.prnn_native on the CPU. Only the bindings depend on torch, and only on its stable ABI.
//
// Shapes: T time steps, B batch, I input size, H hidden size, G gates, S saved; D directions, 2 where the second set
// of weights is given. Python (prnn/ops/layer.py, cpu.py) explains what does not fit and sees to autograd;
// what is checked here is what the kernels would run into.
#include "bindings.h"
#include "cpu/driver.h"
#include "cpu/plan.h"

namespace {

using namespace prnn;
using namespace prnn::cpu;

// The operands of both passes, dense except for x, kept alive while the kernels run.
struct Operands {
  Tensor x;
  Optional weight_ih[2], weight_hh[2], bias_ih[2], bias_hh[2];
  Tensor h0;
  Optional c0, lengths, resets;
  int64_t T, B, I, H, D, G, S;
};

// An uninitialised result, every element of which will be written.
Tensor allocate(const Tensor& like, const std::vector<int64_t>& shape) {
  const Tensor result = uninitialized(like, shape);
  advise_huge_pages(results(result), result.numel() * element_size(like));
  return result;
}

Operands operands(const Tensor& x, const Optional& weight_ih, const Tensor& weight_hh, const Optional& bias_ih,
                  const Optional& bias_hh, const Tensor& h0, const Optional& c0, const Optional& lengths,
                  const Optional& resets, const Optional& weight_ih_r, const Optional& weight_hh_r,
                  const Optional& bias_ih_r, const Optional& bias_hh_r, int64_t cell) {
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16,
                  "prnn_native takes float32 and bfloat16");
  STD_TORCH_CHECK(is_cell(cell), "prnn_native: there is no such cell");
  STD_TORCH_CHECK(x.dim() == 3 && weight_hh.dim() == 2 && h0.dim() == 3, "prnn_native takes x [T,B,I] and h0 [D,B,H]");
  Operands o{dense_rows(x),
             {dense(weight_ih), dense(weight_ih_r)},
             {dense(Optional(weight_hh)), dense(weight_hh_r)},
             {dense(bias_ih), dense(bias_ih_r)},
             {dense(bias_hh), dense(bias_hh_r)},
             dense(h0),
             dense(c0),
             dense(lengths),
             dense(resets),
             x.size(0),
             x.size(1),
             x.size(2),
             weight_hh.size(1),
             weight_hh_r ? 2 : 1,
             gates(static_cast<Cell>(cell)),
             saved(static_cast<Cell>(cell))};
  for (int d = 0; d < o.D; ++d) {
    check(o.weight_ih[d], {o.G * o.H, o.I}, dtype), check(o.weight_hh[d], {o.G * o.H, o.H}, dtype);
    check(o.bias_ih[d], {o.G * o.H}, dtype), check(o.bias_hh[d], {o.G * o.H}, dtype);
  }
  check(h0, {o.D, o.B, o.H}, dtype), check(c0, {o.D, o.B, o.H}, ScalarType::Float);
  check(lengths, {o.B}, ScalarType::Long), check(resets, {o.T, o.B}, ScalarType::Bool);
  STD_TORCH_CHECK(o.H > 0 && (weight_ih ? o.I > 0 : o.I == o.G * o.H) && bool(c0) == has_c(static_cast<Cell>(cell)),
                  "prnn_native: x [T,B,I] or c0 does not fit the cell");
  return o;
}

Layer layer(const Operands& o, int64_t d, int64_t cell, bool reverse) {
  Layer layer{};
  layer.cell = static_cast<Cell>(cell);
  layer.dtype = o.x.scalar_type() == ScalarType::Float ? Dtype::float32 : Dtype::bfloat16;
  layer.reverse = d == 1 || reverse;
  layer.T = o.T, layer.B = o.B, layer.I = o.I, layer.H = o.H;
  layer.x = sequence(o.x, data(o.x));
  layer.weight_ih = data(o.weight_ih[d]);
  layer.weight_hh = data(o.weight_hh[d]);
  layer.h0 = shifted(data(o.h0), d, o.B * o.H * element_size(o.x));
  layer.c0 = floats(o.c0, d, o.B * o.H);
  layer.lengths = data<int64_t>(o.lengths);
  layer.resets = data<bool>(o.resets);
  return layer;
}

// The output and the last state; c_n of a cell with c, and what the backward pass needs, where it needs anything.
std::tuple<Tensor, Tensor, Optional, Optional> layer_forward(const Tensor x, const Optional weight_ih,
                                                             const Tensor weight_hh, const Optional bias_ih,
                                                             const Optional bias_hh, const Tensor h0, const Optional c0,
                                                             const Optional lengths, const Optional resets,
                                                             const Optional weight_ih_r, const Optional weight_hh_r,
                                                             const Optional bias_ih_r, const Optional bias_hh_r,
                                                             int64_t cell, bool reverse, bool save) {
  const Operands o = operands(x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, lengths, resets, weight_ih_r,
                              weight_hh_r, bias_ih_r, bias_hh_r, cell);
  const Tensor output = allocate(x, {o.T, o.B, o.D * o.H});
  const Tensor h_n = uninitialized(x, {o.D, o.B, o.H});
  Optional c_n, saved;
  if (c0) c_n = uninitialized(*c0, {o.D, o.B, o.H});
  if (save && o.S > 0) saved = allocate(x, {o.D, o.T, o.B, o.S * o.H});
  Forward passes[2]{};
  for (int64_t d = 0; d < o.D; ++d) {
    static_cast<Layer&>(passes[d]) = layer(o, d, cell, reverse);
    passes[d].bias_ih = data(o.bias_ih[d]);
    passes[d].bias_hh = data(o.bias_hh[d]);
    passes[d].output = sequence(output, shifted(results(output), d, o.H * element_size(x)));
    passes[d].h_n = shifted(results(h_n), d, o.B * o.H * element_size(x));
    passes[d].c_n = c_n ? floats(*c_n, d, o.B * o.H) : nullptr;
    passes[d].saved = saved ? shifted(results(*saved), d, o.T * o.B * o.S * o.H * element_size(x)) : nullptr;
  }
  forward(passes, static_cast<int>(o.D), torch::stable::get_num_threads(), in_parallel);
  return {output, h_n, c_n, saved};
}

// Gradients of x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0 and the second direction's four weights, of those that
// are present and required.
std::vector<Optional> layer_backward(const Optional grad_output, const Optional grad_h_n, const Optional grad_c_n,
                                     const Tensor x, const Optional weight_ih, const Tensor weight_hh,
                                     const Optional bias_ih, const Optional bias_hh, const Tensor h0, const Optional c0,
                                     const Optional lengths, const Optional resets, const Optional weight_ih_r,
                                     const Optional weight_hh_r, const Optional bias_ih_r, const Optional bias_hh_r,
                                     const Tensor output, const Optional saved, int64_t cell, bool reverse, bool need_x,
                                     bool need_weights) {
  const Operands o = operands(x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, lengths, resets, weight_ih_r,
                              weight_hh_r, bias_ih_r, bias_hh_r, cell);
  Optional grad;
  if (grad_output) grad = dense_rows(*grad_output);
  const Optional grad_h = dense(grad_h_n), grad_c = dense(grad_c_n), kept = dense(saved);
  const Tensor outputs = dense_rows(output);
  const ScalarType dtype = x.scalar_type();
  check(output, {o.T, o.B, o.D * o.H}, dtype), check(grad, {o.T, o.B, o.D * o.H}, dtype);
  check(grad_h, {o.D, o.B, o.H}, dtype), check(grad_c, {o.D, o.B, o.H}, ScalarType::Float);
  STD_TORCH_CHECK(!o.S || kept, "prnn_native: the backward pass needs what a forward pass with save=True has saved");
  if (o.S) check(kept, {o.D, o.T, o.B, o.S * o.H}, dtype);
  const auto like = [](const Optional& tensor, bool required) {
    if (!tensor || !required) return Optional();
    const auto sizes = tensor->sizes();
    return Optional(allocate(*tensor, {sizes.begin(), sizes.end()}));
  };
  const Optional grad_h0 = like(h0, true), grad_c0 = like(c0, true);
  Optional grad_x[2], grad_weights[2][4];
  Backward passes[2]{};
  for (int64_t d = 0; d < o.D; ++d) {
    static_cast<Layer&>(passes[d]) = layer(o, d, cell, reverse);
    Backward& pass = passes[d];
    const int64_t state = o.B * o.H * element_size(x);
    pass.output = sequence(outputs, shifted(data(outputs), d, o.H * element_size(x)));
    pass.saved = o.S ? shifted(data(kept), d, o.T * o.B * o.S * o.H * element_size(x)) : nullptr;
    if (grad) pass.grad_output = sequence(*grad, shifted(data(*grad), d, o.H * element_size(x)));
    pass.grad_h_n = shifted(data(grad_h), d, state);
    pass.grad_c_n = floats(grad_c, d, o.B * o.H);
    pass.grad_h0 = shifted(results(*grad_h0), d, state);
    pass.grad_c0 = grad_c0 ? floats(*grad_c0, d, o.B * o.H) : nullptr;
    grad_x[d] = like(x, need_x);
    if (need_x) pass.grad_x = sequence(*grad_x[d], results(*grad_x[d]));
    const Optional weights[] = {o.weight_ih[d], o.weight_hh[d], o.bias_ih[d], o.bias_hh[d]};
    void** const places[] = {&pass.grad_weight_ih, &pass.grad_weight_hh, &pass.grad_bias_ih, &pass.grad_bias_hh};
    for (int i = 0; i < 4; ++i) {
      grad_weights[d][i] = like(weights[i], need_weights);
      if (grad_weights[d][i]) *places[i] = results(*grad_weights[d][i]);
    }
  }
  backward(passes, static_cast<int>(o.D), torch::stable::get_num_threads(), in_parallel);
  if (o.D == 2 && need_x) add(passes[0].dtype, results(*grad_x[0]), data(grad_x[1]), o.T * o.B * o.I, in_parallel);
  const auto& [first, second] = grad_weights;
  return {grad_x[0], first[0],  first[1],  first[2],  first[3], grad_h0,
          grad_c0,   second[0], second[1], second[2], second[3]};
}

std::string cpu_isa() { return instruction_set(); }

// Comma-separated names in the order of the ids.
std::string cells() {
  std::string names;
  for (const CellRow& row : kCells) names += (names.empty() ? "" : ",") + std::string(row.name);
  return names;
}

}  // namespace

#define PRNN_OPERANDS                                                                                        \
  "Tensor x, Tensor? weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor h0, Tensor? c0, " \
  "Tensor? lengths, Tensor? resets, Tensor? weight_ih_r, Tensor? weight_hh_r, Tensor? bias_ih_r, Tensor? bias_hh_r, "

#define PRNN_FORWARD "(" PRNN_OPERANDS "int cell, bool reverse, bool save) -> (Tensor, Tensor, Tensor?, Tensor?)"
#define PRNN_BACKWARD                                                        \
  "(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, " PRNN_OPERANDS \
  "Tensor output, Tensor? saved, int cell, bool reverse, bool need_x, bool need_weights) -> Tensor?[]"

STABLE_TORCH_LIBRARY(prnn_native, library) {
  library.def("layer_forward" PRNN_FORWARD);
  library.def("layer_backward" PRNN_BACKWARD);
  library.def("cpu_isa() -> str");
  library.def("cells() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(prnn_native, CPU, library) {
  library.impl("layer_forward", TORCH_BOX(&layer_forward));
  library.impl("layer_backward", TORCH_BOX(&layer_backward));
}

STABLE_TORCH_LIBRARY_IMPL(prnn_native, CompositeExplicitAutograd, library) {
  library.impl("cpu_isa", TORCH_BOX(&cpu_isa));
  library.impl("cells", TORCH_BOX(&cells));
}
