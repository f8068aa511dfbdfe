// torch.ops.prnn_native on the CPU. Only the bindings depend on torch, and only on its stable ABI.
//
// Shapes: T time steps, B batch, I input size, H hidden size, G gates, S saved; D directions, 2 where the second set
// of weights is given; of a user's cell N parameters, M inputs, and K columns of weight_hh: H, or of diagonal blocks,
// or none. Python (prnn/ops/layer.py, cpu.py) explains what does not fit and sees to autograd; what is checked here is
// what the kernels would run into.
#include "bindings.h"

#include <cstring>

#include "cpu/driver.h"
#include "cpu/plan.h"
#include "cpu/scratch.h"
#include "user_cells.h"

// Of torch 2.11 on; null in 2.10.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset, int32_t dtype,
    int32_t device_type, int32_t device_index, AtenTensorHandle* result, int32_t layout, const uint8_t* metadata,
    int64_t metadata_size, void (*deleter)(void* data, void* context), void* context);

namespace {

using namespace prnn;
using namespace prnn::cpu;

// The operands of both passes, dense except for x, kept alive while the kernels run.
struct Operands {
  Tensor x;
  Optional weight_ih[2], weight_hh[2], bias_ih[2], bias_hh[2];
  Optional params[2];
  Tensor h0;
  Optional c0, inputs, lengths, resets;
  const CellRow& cell;
  int64_t T, B, I, H, D, G, S, K;
};

// An uninitialised result, every element of which will be written.
Tensor allocate(const Tensor& like, const std::vector<int64_t>& shape) {
  const Tensor result = uninitialized(like, shape);
  advise_huge_pages(results(result), result.numel() * element_size(like));
  return result;
}

Tensor allocate_floats(const Tensor& like, const std::vector<int64_t>& shape) {
  const Tensor result =
      allocated(like, shape, [&] { return torch::stable::new_empty(like, shape, ScalarType::Float); });
  advise_huge_pages(results(result), result.numel() * 4);
  return result;
}
Tensor like(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return allocate(tensor, {sizes.begin(), sizes.end()});
}

// From this size on reuse pays: below it malloc keeps what is freed.
constexpr int64_t kWorthReusing = int64_t{1} << 20;

// An uninitialised result whose memory serves the next call after it is freed. Not for what a user may resize, or torch
// copy when it is written to (torch._lazy_clone): torch refuses both for memory that is not its own.
Tensor reused(const Tensor& like, const std::vector<int64_t>& shape, ScalarType type) {
  int64_t bytes = type == ScalarType::Float ? 4 : 2;
  for (const int64_t size : shape) bytes *= size;
  if (bytes >= kWorthReusing && torch_from_blob) {
    std::vector<int64_t> strides(shape.size());
    int64_t stride = 1;
    for (size_t i = shape.size(); i-- > 0; stride *= shape[i]) strides[i] = stride;
    const Block block = take_result(bytes);
    const auto give_back = [](void* memory, void* size) {
      give_back_result({static_cast<char*>(memory), reinterpret_cast<intptr_t>(size)});
    };
    AtenTensorHandle handle;
    const int32_t dtype = type == ScalarType::Float ? aoti_torch_dtype_float32() : aoti_torch_dtype_bfloat16();
    const auto error = torch_from_blob(block.memory, static_cast<int64_t>(shape.size()), shape.data(), strides.data(),
                                       0, dtype, aoti_torch_device_type_cpu(), -1, &handle, aoti_torch_layout_strided(),
                                       nullptr, 0, give_back, reinterpret_cast<void*>(block.bytes));
    if (error == AOTI_TORCH_SUCCESS) return Tensor(handle);
    give_back_result(block);
  }
  return type == like.scalar_type() ? allocate(like, shape) : allocate_floats(like, shape);
}

// A tensor for a result, as torch's out=.
void check_out(const Optional& out, std::initializer_list<int64_t> shape, const Tensor& like) {
  check(out, shape, like.scalar_type());
  STD_TORCH_CHECK(!out || out->is_contiguous(), "prnn_native: a result's memory is not dense");
}

// The states besides h, their gradients: [D,B,H] of one, [K,D,B,H] of several.
void check_states(const Optional& c, const Operands& o) {
  if (o.cell.states > 1)
    check(c, {o.cell.states, o.D, o.B, o.H}, ScalarType::Float);
  else
    check(c, {o.D, o.B, o.H}, ScalarType::Float);
}

Operands operands(const Tensor& x, const Optional& weight_ih, const Tensor& weight_hh, const Optional& bias_ih,
                  const Optional& bias_hh, const Optional& params, const Tensor& h0, const Optional& c0,
                  const Optional& inputs, const Optional& lengths, const Optional& resets, const Optional& weight_ih_r,
                  const Optional& weight_hh_r, const Optional& bias_ih_r, const Optional& bias_hh_r,
                  const Optional& params_r, int64_t number) {
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16,
                  "prnn_native takes float32 and bfloat16");
  const CellRow& cell = cell_row(number);
  STD_TORCH_CHECK(x.dim() == 3 && weight_hh.dim() == 2 && h0.dim() == 3, "prnn_native takes x [T,B,I] and h0 [D,B,H]");
  Operands o{dense_rows(x),
             {dense(weight_ih), dense(weight_ih_r)},
             {dense(Optional(weight_hh)), dense(weight_hh_r)},
             {dense(bias_ih), dense(bias_ih_r)},
             {dense(bias_hh), dense(bias_hh_r)},
             {dense(params), dense(params_r)},
             dense(h0),
             dense(c0),
             inputs ? Optional(dense_rows(*inputs)) : inputs,
             dense(lengths),
             dense(resets),
             cell,
             x.size(0),
             x.size(1),
             x.size(2),
             weight_hh.size(0) / cell.gates,
             weight_hh_r ? 2 : 1,
             cell.gates,
             cell.saved,
             weight_hh.size(1)};
  for (int d = 0; d < o.D; ++d) {
    check(o.weight_ih[d], {o.G * o.H, o.I}, dtype), check(o.weight_hh[d], {o.G * o.H, o.K}, dtype);
    check(o.bias_ih[d], {o.G * o.H}, dtype), check(o.bias_hh[d], {o.G * o.H}, dtype);
    check(o.params[d], {cell.params, o.H}, ScalarType::Float);
    STD_TORCH_CHECK(bool(o.params[d]) == (cell.params > 0), "prnn_native: the parameters do not fit the cell");
  }
  check(h0, {o.D, o.B, o.H}, dtype), check_states(c0, o);
  check(inputs, {o.T, o.B, cell.inputs * o.H}, ScalarType::Float);
  STD_TORCH_CHECK(bool(inputs) == (cell.inputs > 0), "prnn_native: the inputs do not fit the cell");
  check(lengths, {o.B}, ScalarType::Long), check(resets, {o.T, o.B}, ScalarType::Bool);
  STD_TORCH_CHECK(o.H > 0 && (weight_ih ? o.I > 0 : o.I == o.G * o.H) && bool(c0) == (cell.states > 0),
                  "prnn_native: x [T,B,I] or c0 does not fit the cell");
  const bool blocks = user_cell(number) && (o.K == 0 || o.H % o.K == 0);
  STD_TORCH_CHECK(o.K == o.H || blocks, "prnn_native: weight_hh does not fit the cell");
  return o;
}

Layer layer(const Operands& o, int64_t d, int64_t cell, bool reverse) {
  Layer layer{};
  layer.cell = static_cast<Cell>(cell);
  layer.user = user_cell(cell), layer.K = o.K;
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
  layer.state_step = o.D * o.B * o.H;
  layer.params = data<float>(o.params[d]);
  if (o.inputs) layer.inputs = sequence(*o.inputs, data(*o.inputs));
  return layer;
}

// An element of what the cell saves has the dtype of x, or is a float.
Optional like_saved(const Operands& o) {
  if (o.S == 0) return Optional();
  const bool floats = !o.cell.rounds_saved && o.x.scalar_type() != ScalarType::Float;
  return reused(o.x, {o.D, o.T, o.B, o.S * o.H}, floats ? ScalarType::Float : o.x.scalar_type());
}

// The output, or nothing if that is in `out`, and the last state; the other states, what the backward pass needs, and
// h [T,B,D*H] of a cell whose output is another, of those that there are.
std::tuple<Optional, Tensor, Optional, Optional, Optional> layer_forward(
    const Tensor x, const Optional weight_ih, const Tensor weight_hh, const Optional bias_ih, const Optional bias_hh,
    const Optional params, const Tensor h0, const Optional c0, const Optional inputs, const Optional lengths,
    const Optional resets, const Optional weight_ih_r, const Optional weight_hh_r, const Optional bias_ih_r,
    const Optional bias_hh_r, const Optional params_r, int64_t cell, bool reverse, bool save, const Optional out) {
  const Operands o = operands(x, weight_ih, weight_hh, bias_ih, bias_hh, params, h0, c0, inputs, lengths, resets,
                              weight_ih_r, weight_hh_r, bias_ih_r, bias_hh_r, params_r, cell);
  check_out(out, {o.T, o.B, o.D * o.H}, x);
  const Tensor output = out ? *out : allocate(x, {o.T, o.B, o.D * o.H});
  const Tensor h_n = uninitialized(x, {o.D, o.B, o.H});
  Optional c_n, saved, hidden;
  if (c0) c_n = like(*c0);
  if (save) saved = like_saved(o);
  if (save && o.cell.output >= 0) hidden = reused(x, {o.T, o.B, o.D * o.H}, x.scalar_type());
  Forward passes[2]{};
  for (int64_t d = 0; d < o.D; ++d) {
    const int64_t half = d * o.H * element_size(x), saved_row = o.T * o.B * o.S * o.H;
    static_cast<Layer&>(passes[d]) = layer(o, d, cell, reverse);
    passes[d].bias_ih = data(o.bias_ih[d]);
    passes[d].bias_hh = data(o.bias_hh[d]);
    passes[d].output = sequence(output, shifted(results(output), 1, half));
    passes[d].h_n = shifted(results(h_n), d, o.B * o.H * element_size(x));
    passes[d].c_n = c_n ? floats(*c_n, d, o.B * o.H) : nullptr;
    passes[d].saved = saved ? shifted(results(*saved), d, saved_row * element_size(*saved)) : nullptr;
    if (hidden) passes[d].hidden = sequence(*hidden, shifted(results(*hidden), 1, half));
  }
  forward(passes, static_cast<int>(o.D), torch::stable::get_num_threads(), in_parallel);
  return {out ? Optional() : Optional(output), h_n, c_n, saved, hidden};
}

// All layers without a backward pass: output [T,B,D*H], h_n and c_n [L*D,B,H]. `weights` are those of each layer and
// direction, in torch.nn's order; h0 and c0 [L*D,B,H].
std::tuple<Tensor, Tensor, Optional> stack_forward(const Tensor x, const Tensor h0, const Optional c0,
                                                   const std::vector<Tensor> weights, int64_t cell, int64_t layers,
                                                   int64_t directions) {
  const int64_t rows = layers * directions, each = static_cast<int64_t>(weights.size()) / std::max<int64_t>(rows, 1);
  STD_TORCH_CHECK(layers > 0 && (directions == 1 || directions == 2) && (each == 2 || each == 4) &&
                      each * rows == static_cast<int64_t>(weights.size()) && h0.dim() == 3 && h0.size(0) == rows &&
                      (!c0 || (c0->dim() == 3 && c0->size(0) == rows)),
                  "prnn_native: the weights, h0 or c0 do not fit the number of layers");
  STD_TORCH_CHECK(!user_cell(cell), "prnn_native: stack_forward takes built-in cells");
  const auto weight = [&](int64_t row, int64_t kind) {
    return kind < each ? Optional(weights[row * each + kind]) : Optional();
  };
  Tensor output = x;
  Tensor h_n = h0;
  Optional c_n;
  if (layers > 1) h_n = like(h0), c_n = c0 ? Optional(like(*c0)) : c0;
  for (int64_t number = 0; number < layers; ++number) {
    const int64_t row = number * directions, second = directions == 2 ? row + 1 : 0;
    const auto part = [&](Tensor state) {
      return layers == 1 ? state : torch::stable::narrow(state, 0, row, directions);
    };
    const auto reverse = [&](int64_t kind) { return second ? weight(second, kind) : Optional(); };
    auto [result, h, c, saved, hidden] =
        layer_forward(output, weight(row, 0), weights[row * each + 1], weight(row, 2), weight(row, 3), {}, part(h0),
                      c0 ? Optional(part(*c0)) : c0, {}, {}, {}, reverse(0), reverse(1), reverse(2), reverse(3), {},
                      cell, false, false, {});
    output = *result;
    if (layers == 1) return {*result, h, c};
    const auto keep = [&](const Tensor& all, const Tensor& last) {
      const int64_t bytes = last.numel() * element_size(last);
      std::memcpy(shifted(results(all), number, bytes), data(last), bytes);
    };
    keep(h_n, h);
    if (c) keep(*c_n, *c);
  }
  return {output, h_n, c_n};
}

// Gradients of x (nothing if it is in `grad_x_out`), weight_ih, weight_hh, bias_ih, bias_hh, params, h0, c0, inputs and
// the second direction's weights, of those that are present and required.
std::vector<Optional> layer_backward(const Optional grad_output, const Optional grad_h_n, const Optional grad_c_n,
                                     const Tensor x, const Optional weight_ih, const Tensor weight_hh,
                                     const Optional bias_ih, const Optional bias_hh, const Optional params,
                                     const Tensor h0, const Optional c0, const Optional inputs, const Optional lengths,
                                     const Optional resets, const Optional weight_ih_r, const Optional weight_hh_r,
                                     const Optional bias_ih_r, const Optional bias_hh_r, const Optional params_r,
                                     const Tensor output, const Optional saved, const Optional hidden, int64_t cell,
                                     bool reverse, bool need_x, bool need_weights, bool need_inputs, bool need_params,
                                     const Optional grad_x_out) {
  const Operands o = operands(x, weight_ih, weight_hh, bias_ih, bias_hh, params, h0, c0, inputs, lengths, resets,
                              weight_ih_r, weight_hh_r, bias_ih_r, bias_hh_r, params_r, cell);
  Optional grad, h;
  if (grad_output) grad = dense_rows(*grad_output);
  if (o.cell.output >= 0 && hidden) h = dense_rows(*hidden);
  const Optional grad_h = dense(grad_h_n), grad_c = dense(grad_c_n), kept = dense(saved);
  const Tensor outputs = dense_rows(output);
  const ScalarType dtype = x.scalar_type();
  check(output, {o.T, o.B, o.D * o.H}, dtype), check(grad, {o.T, o.B, o.D * o.H}, dtype);
  check(grad_h, {o.D, o.B, o.H}, dtype), check_states(grad_c, o), check(h, {o.T, o.B, o.D * o.H}, dtype);
  STD_TORCH_CHECK((!o.S || kept) && (o.cell.output < 0 || h),
                  "prnn_native: the backward pass needs what a forward pass with save=True has saved");
  if (o.S) check(kept, {o.D, o.T, o.B, o.S * o.H}, o.cell.rounds_saved ? dtype : ScalarType::Float);
  const auto wanted = [](const Optional& tensor, bool required) {
    return tensor && required ? Optional(like(*tensor)) : Optional();
  };
  check_out(grad_x_out, {o.T, o.B, o.I}, x);
  const Optional grad_h0 = wanted(h0, true), grad_c0 = wanted(c0, true);
  Optional grad_x[2], grad_inputs[2], grad_weights[2][5];
  Backward passes[2]{};
  for (int64_t d = 0; d < o.D; ++d) {
    static_cast<Layer&>(passes[d]) = layer(o, d, cell, reverse);
    Backward& pass = passes[d];
    const int64_t state = o.B * o.H * element_size(x), half = d * o.H * element_size(x);
    pass.output = sequence(outputs, shifted(data(outputs), 1, half));
    if (h) pass.hidden = sequence(*h, shifted(data(*h), 1, half));
    pass.saved = o.S ? shifted(data(kept), d, o.T * o.B * o.S * o.H * element_size(*kept)) : nullptr;
    if (grad) pass.grad_output = sequence(*grad, shifted(data(*grad), 1, half));
    pass.grad_h_n = shifted(data(grad_h), d, state);
    pass.grad_c_n = floats(grad_c, d, o.B * o.H);
    pass.grad_h0 = shifted(results(*grad_h0), d, state);
    pass.grad_c0 = grad_c0 ? floats(*grad_c0, d, o.B * o.H) : nullptr;
    grad_x[d] = d == 0 && grad_x_out ? grad_x_out : wanted(x, need_x);
    grad_inputs[d] = wanted(o.inputs, need_inputs);
    if (need_x) pass.grad_x = sequence(*grad_x[d], results(*grad_x[d]));
    if (grad_inputs[d]) pass.grad_inputs = sequence(*grad_inputs[d], results(*grad_inputs[d]));
    const Optional weights[] = {o.weight_ih[d], o.weight_hh[d], o.bias_ih[d], o.bias_hh[d], o.params[d]};
    for (int i = 0; i < 5; ++i) grad_weights[d][i] = wanted(weights[i], i < 4 ? need_weights : need_params);
    void** const places[] = {&pass.grad_weight_ih, &pass.grad_weight_hh, &pass.grad_bias_ih, &pass.grad_bias_hh};
    for (int i = 0; i < 4; ++i)
      if (grad_weights[d][i]) *places[i] = results(*grad_weights[d][i]);
    if (grad_weights[d][4]) pass.grad_params = floats(*grad_weights[d][4], 0, 0);
  }
  backward(passes, static_cast<int>(o.D), torch::stable::get_num_threads(), in_parallel);
  const auto add_second = [&](const Optional* grads, Dtype type) {
    if (o.D == 2 && grads[0]) add(type, results(*grads[0]), data(grads[1]), grads[0]->numel(), in_parallel);
  };
  add_second(grad_x, passes[0].dtype), add_second(grad_inputs, Dtype::float32);
  const auto& [first, second] = grad_weights;
  if (grad_x_out) grad_x[0].reset();
  return {grad_x[0], first[0],       first[1],  first[2],  first[3],  first[4],  grad_h0,
          grad_c0,   grad_inputs[0], second[0], second[1], second[2], second[3], second[4]};
}

int64_t load_cell(std::string path) { return load_user_cell(path); }
std::string cell_headers() { return headers(); }
std::string cpu_isa() { return instruction_set(); }

// Comma-separated names in the order of the ids.
std::string cells() {
  std::string names;
  for (const CellRow& row : kCells) names += (names.empty() ? "" : ",") + std::string(row.name);
  return names;
}

}  // namespace

#define PRNN_OPERANDS                                                                                               \
  "Tensor x, Tensor? weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor? params, Tensor h0, "    \
  "Tensor? c0, Tensor? inputs, Tensor? lengths, Tensor? resets, Tensor? weight_ih_r, Tensor? weight_hh_r, Tensor? " \
  "bias_ih_r, Tensor? bias_hh_r, Tensor? params_r, "

#define PRNN_FORWARD \
  "(" PRNN_OPERANDS  \
  "int cell, bool reverse, bool save, Tensor(a!)? out=None) -> (Tensor?, Tensor, Tensor?, Tensor?, Tensor?)"
#define PRNN_BACKWARD                                                                                      \
  "(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, " PRNN_OPERANDS                               \
  "Tensor output, Tensor? saved, Tensor? hidden, int cell, bool reverse, bool need_x, bool need_weights, " \
  "bool need_inputs, bool need_params, Tensor(a!)? grad_x_out=None) -> Tensor?[]"

STABLE_TORCH_LIBRARY(prnn_native, library) {
  library.def("layer_forward" PRNN_FORWARD);
  library.def("layer_backward" PRNN_BACKWARD);
  library.def(
      "stack_forward(Tensor x, Tensor h0, Tensor? c0, Tensor[] weights, int cell, int layers, int directions) -> "
      "(Tensor, Tensor, Tensor?)");
  library.def("cpu_isa() -> str");
  library.def("cells() -> str");
  library.def("load_cell(str path) -> int");
  library.def("cell_headers() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(prnn_native, CPU, library) {
  library.impl("layer_forward", TORCH_BOX(&layer_forward));
  library.impl("layer_backward", TORCH_BOX(&layer_backward));
  library.impl("stack_forward", TORCH_BOX(&stack_forward));
}

STABLE_TORCH_LIBRARY_IMPL(prnn_native, CompositeExplicitAutograd, library) {
  library.impl("cpu_isa", TORCH_BOX(&cpu_isa));
  library.impl("cells", TORCH_BOX(&cells));
  library.impl("load_cell", TORCH_BOX(&load_cell));
  library.impl("cell_headers", TORCH_BOX(&cell_headers));
}
