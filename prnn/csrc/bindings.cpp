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

// What the native operators are given of a layer, in their order.
struct Arguments {
  Optional x, weight_ih, weight_hh, bias_ih, bias_hh, params, h0, c0, inputs, lengths, resets;
  Optional weight_ih_r, weight_hh_r, bias_ih_r, bias_hh_r, params_r;
};
constexpr size_t kArguments = sizeof(Arguments) / sizeof(Optional);

// From the list of a stack's operators. `x`: the layer's, where the list has none.
Arguments arguments_of(const Optional* each, const Optional& x) {
  return {each[0] ? each[0] : x,
          each[1],
          each[2],
          each[3],
          each[4],
          each[5],
          each[6],
          each[7],
          each[8],
          each[9],
          each[10],
          each[11],
          each[12],
          each[13],
          each[14],
          each[15]};
}

Operands operands(const Arguments& given, int64_t number) {
  STD_TORCH_CHECK(given.x && given.weight_hh && given.h0, "prnn_native: x, weight_hh and h0 are required");
  const Tensor &x = *given.x, &weight_hh = *given.weight_hh, &h0 = *given.h0;
  const Optional &c0 = given.c0, &inputs = given.inputs;
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16,
                  "prnn_native takes float32 and bfloat16");
  const CellRow& cell = cell_row(number);
  STD_TORCH_CHECK(x.dim() == 3 && weight_hh.dim() == 2 && h0.dim() == 3, "prnn_native takes x [T,B,I] and h0 [D,B,H]");
  Operands o{dense_rows(x),
             {dense(given.weight_ih), dense(given.weight_ih_r)},
             {dense(given.weight_hh), dense(given.weight_hh_r)},
             {dense(given.bias_ih), dense(given.bias_ih_r)},
             {dense(given.bias_hh), dense(given.bias_hh_r)},
             {dense(given.params), dense(given.params_r)},
             dense(h0),
             dense(c0),
             inputs ? Optional(dense_rows(*inputs)) : inputs,
             dense(given.lengths),
             dense(given.resets),
             cell,
             x.size(0),
             x.size(1),
             x.size(2),
             weight_hh.size(0) / cell.gates,
             given.weight_hh_r ? 2 : 1,
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
  check(given.lengths, {o.B}, ScalarType::Long), check(given.resets, {o.T, o.B}, ScalarType::Bool);
  STD_TORCH_CHECK(o.H > 0 && (given.weight_ih ? o.I > 0 : o.I == o.G * o.H) && bool(c0) == (cell.states > 0),
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

// A layer's forward pass, of one direction or two, with the tensors that it reads and writes.
struct ForwardCall {
  Operands o;
  Tensor output = {}, h_n = {};
  Optional c_n = {}, saved = {}, hidden = {};
  Forward passes[2] = {};
};

// `out`: the memory of the output, or nothing. `inner`: the output is another layer's input, and no user's.
ForwardCall forward_call(const Arguments& given, int64_t cell, bool reverse, bool save, const Optional& out,
                         bool inner = false) {
  ForwardCall call{operands(given, cell)};
  const Operands& o = call.o;
  const Tensor& x = o.x;
  const std::vector<int64_t> shape{o.T, o.B, o.D * o.H};
  check_out(out, {o.T, o.B, o.D * o.H}, x);
  call.output = out ? *out : inner ? reused(x, shape, x.scalar_type()) : allocate(x, shape);
  call.h_n = uninitialized(x, {o.D, o.B, o.H});
  if (o.c0) call.c_n = like(*o.c0);
  if (save) call.saved = like_saved(o);
  if (save && o.cell.output >= 0) call.hidden = reused(x, shape, x.scalar_type());
  for (int64_t d = 0; d < o.D; ++d) {
    const int64_t half = d * o.H * element_size(x), saved_row = o.T * o.B * o.S * o.H;
    Forward& pass = call.passes[d];
    static_cast<Layer&>(pass) = layer(o, d, cell, reverse);
    pass.bias_ih = data(o.bias_ih[d]);
    pass.bias_hh = data(o.bias_hh[d]);
    pass.output = sequence(call.output, shifted(results(call.output), 1, half));
    pass.h_n = shifted(results(call.h_n), d, o.B * o.H * element_size(x));
    pass.c_n = call.c_n ? floats(*call.c_n, d, o.B * o.H) : nullptr;
    pass.saved = call.saved ? shifted(results(*call.saved), d, saved_row * element_size(*call.saved)) : nullptr;
    if (call.hidden) pass.hidden = sequence(*call.hidden, shifted(results(*call.hidden), 1, half));
  }
  return call;
}

// The output, or nothing if that is in `out`, and the last state; the other states, what the backward pass needs, and
// h [T,B,D*H] of a cell whose output is another, of those that there are.
std::tuple<Optional, Tensor, Optional, Optional, Optional> layer_forward(
    const Tensor x, const Optional weight_ih, const Tensor weight_hh, const Optional bias_ih, const Optional bias_hh,
    const Optional params, const Tensor h0, const Optional c0, const Optional inputs, const Optional lengths,
    const Optional resets, const Optional weight_ih_r, const Optional weight_hh_r, const Optional bias_ih_r,
    const Optional bias_hh_r, const Optional params_r, int64_t cell, bool reverse, bool save, const Optional out) {
  const ForwardCall call = forward_call({x, weight_ih, weight_hh, bias_ih, bias_hh, params, h0, c0, inputs, lengths,
                                         resets, weight_ih_r, weight_hh_r, bias_ih_r, bias_hh_r, params_r},
                                        cell, reverse, save, out);
  forward(call.passes, static_cast<int>(call.o.D), torch::stable::get_num_threads(), in_parallel);
  return {out ? Optional() : Optional(call.output), call.h_n, call.c_n, call.saved, call.hidden};
}

// The layers of a stack one after the other or, of one direction, at the same time.
void run_forward(const std::vector<ForwardCall>& calls) {
  const int64_t threads = torch::stable::get_num_threads();
  std::vector<Forward> passes;
  for (const ForwardCall& call : calls) {
    if (call.o.D == 1)
      passes.push_back(call.passes[0]);
    else
      forward(call.passes, 2, threads, in_parallel);
  }
  if (!passes.empty()) forward_stack(passes.data(), static_cast<int>(passes.size()), threads, in_parallel);
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
  std::vector<ForwardCall> calls;
  calls.reserve(static_cast<size_t>(layers));
  for (int64_t number = 0; number < layers; ++number) {
    const int64_t row = number * directions;
    const auto part = [&](Tensor state) {
      return layers == 1 ? state : torch::stable::narrow(state, 0, row, directions);
    };
    Arguments given{};
    given.x = number ? calls.back().output : x, given.h0 = part(h0);
    given.weight_ih = weight(row, 0), given.weight_hh = weight(row, 1);
    given.bias_ih = weight(row, 2), given.bias_hh = weight(row, 3);
    if (c0) given.c0 = part(*c0);
    if (directions == 2) {
      given.weight_ih_r = weight(row + 1, 0), given.weight_hh_r = weight(row + 1, 1);
      given.bias_ih_r = weight(row + 1, 2), given.bias_hh_r = weight(row + 1, 3);
    }
    calls.push_back(forward_call(given, cell, false, false, {}, number + 1 < layers));
  }
  run_forward(calls);
  const ForwardCall& last = calls.back();
  if (layers == 1) return {last.output, last.h_n, last.c_n};
  const Tensor h_n = like(h0);
  const Optional c_n = c0 ? Optional(like(*c0)) : c0;
  const auto keep = [&](const Tensor& all, const Tensor& one, int64_t number) {
    const int64_t bytes = one.numel() * element_size(one);
    std::memcpy(shifted(results(all), number, bytes), data(one), bytes);
  };
  for (int64_t number = 0; number < layers; ++number) {
    keep(h_n, calls[number].h_n, number);
    if (c_n) keep(*c_n, *calls[number].c_n, number);
  }
  return {last.output, h_n, c_n};
}

// The layers of a stack, of one direction, as layer_forward: `operands` are those of each, of which only the first has
// x; layers from number `save_from` on are saved for a backward pass; `out` is the memory of the last output. The
// results of each.
std::vector<Optional> layers_forward(const std::vector<Optional> operands, int64_t cell, int64_t save_from,
                                     const Optional out) {
  const size_t layers = operands.size() / kArguments;
  STD_TORCH_CHECK(layers > 0 && operands.size() == layers * kArguments,
                  "prnn_native: no list of the operands of each layer");
  std::vector<ForwardCall> calls;
  calls.reserve(layers);
  for (size_t i = 0; i < layers; ++i) {
    const Arguments of = arguments_of(&operands[i * kArguments], i ? Optional(calls.back().output) : Optional());
    STD_TORCH_CHECK(!of.weight_hh_r, "prnn_native: layers_forward takes layers of one direction");
    const bool inner = i + 1 < layers;
    const bool save = static_cast<int64_t>(i) >= save_from;
    calls.push_back(forward_call(of, cell, false, save, inner ? Optional() : out, inner));
  }
  run_forward(calls);
  std::vector<Optional> results;
  for (const ForwardCall& call : calls)
    results.insert(results.end(), {Optional(call.output), Optional(call.h_n), call.c_n, call.saved, call.hidden});
  if (out) results[(layers - 1) * (results.size() / layers)].reset();
  return results;
}

// What the backward pass is given of the results' gradients, and of the results of the forward pass.
struct Incoming {
  Optional output, h_n, c_n;
};
struct Kept {
  Optional output, saved, hidden;
};
constexpr size_t kIncoming = sizeof(Incoming) / sizeof(Optional), kKept = sizeof(Kept) / sizeof(Optional);

struct Needs {
  bool x, weights, inputs, params;
};
constexpr size_t kNeeds = 4;

struct BackwardCall {
  Operands o;
  Optional grad = {}, grad_h = {}, grad_c = {}, saved = {}, hidden = {};
  Tensor output = {};
  Optional grad_x[2] = {}, grad_inputs[2] = {}, grad_weights[2][5] = {}, grad_h0 = {}, grad_c0 = {};
  Backward passes[2] = {};
};

// `grad_x`: memory of the gradient of x, or nothing.
BackwardCall backward_call(const Incoming& incoming, const Arguments& given, const Kept& kept, int64_t cell,
                           bool reverse, const Needs& needs, const Optional& grad_x) {
  BackwardCall call{operands(given, cell)};
  const Operands& o = call.o;
  const Tensor& x = o.x;
  STD_TORCH_CHECK(kept.output && (!o.S || kept.saved) && (o.cell.output < 0 || kept.hidden),
                  "prnn_native: the backward pass needs what a forward pass with save=True has saved");
  call.grad_h = dense(incoming.h_n), call.grad_c = dense(incoming.c_n);
  call.saved = dense(kept.saved), call.output = dense_rows(*kept.output);
  if (incoming.output) call.grad = dense_rows(*incoming.output);
  if (o.cell.output >= 0) call.hidden = dense_rows(*kept.hidden);
  const ScalarType dtype = x.scalar_type();
  check(kept.output, {o.T, o.B, o.D * o.H}, dtype), check(call.grad, {o.T, o.B, o.D * o.H}, dtype);
  check(call.grad_h, {o.D, o.B, o.H}, dtype), check_states(call.grad_c, o);
  check(call.hidden, {o.T, o.B, o.D * o.H}, dtype);
  if (o.S) check(call.saved, {o.D, o.T, o.B, o.S * o.H}, o.cell.rounds_saved ? dtype : ScalarType::Float);
  const auto wanted = [](const Optional& tensor, bool required) {
    return tensor && required ? Optional(like(*tensor)) : Optional();
  };
  check_out(grad_x, {o.T, o.B, o.I}, x);
  call.grad_h0 = wanted(o.h0, true), call.grad_c0 = wanted(o.c0, true);
  for (int64_t d = 0; d < o.D; ++d) {
    Backward& pass = call.passes[d];
    static_cast<Layer&>(pass) = layer(o, d, cell, reverse);
    const int64_t state = o.B * o.H * element_size(x), half = d * o.H * element_size(x);
    pass.output = sequence(call.output, shifted(data(call.output), 1, half));
    if (call.hidden) pass.hidden = sequence(*call.hidden, shifted(data(*call.hidden), 1, half));
    pass.saved = o.S ? shifted(data(call.saved), d, o.T * o.B * o.S * o.H * element_size(*call.saved)) : nullptr;
    if (call.grad) pass.grad_output = sequence(*call.grad, shifted(data(*call.grad), 1, half));
    pass.grad_h_n = shifted(data(call.grad_h), d, state);
    pass.grad_c_n = floats(call.grad_c, d, o.B * o.H);
    pass.grad_h0 = shifted(results(*call.grad_h0), d, state);
    pass.grad_c0 = call.grad_c0 ? floats(*call.grad_c0, d, o.B * o.H) : nullptr;
    call.grad_x[d] = d == 0 && grad_x ? grad_x : wanted(x, needs.x);
    call.grad_inputs[d] = wanted(o.inputs, needs.inputs);
    if (needs.x) pass.grad_x = sequence(*call.grad_x[d], results(*call.grad_x[d]));
    if (call.grad_inputs[d]) pass.grad_inputs = sequence(*call.grad_inputs[d], results(*call.grad_inputs[d]));
    const Optional weights[] = {o.weight_ih[d], o.weight_hh[d], o.bias_ih[d], o.bias_hh[d], o.params[d]};
    auto& grads = call.grad_weights[d];
    for (int i = 0; i < 5; ++i) grads[i] = wanted(weights[i], i < 4 ? needs.weights : needs.params);
    void** const places[] = {&pass.grad_weight_ih, &pass.grad_weight_hh, &pass.grad_bias_ih, &pass.grad_bias_hh};
    for (int i = 0; i < 4; ++i)
      if (grads[i]) *places[i] = results(*grads[i]);
    if (grads[4]) pass.grad_params = floats(*grads[4], 0, 0);
  }
  return call;
}

// Gradients of x (nothing if it is in `grad_x`), weight_ih, weight_hh, bias_ih, bias_hh, params, h0, c0, inputs and the
// second direction's weights, of those that are present and required.
void add_gradients(std::vector<Optional>& all, const BackwardCall& call, const Optional& grad_x) {
  const auto& [first, second] = call.grad_weights;
  all.push_back(grad_x ? Optional() : call.grad_x[0]);
  all.insert(all.end(), first, first + 5);
  all.insert(all.end(), {call.grad_h0, call.grad_c0, call.grad_inputs[0]});
  all.insert(all.end(), second, second + 5);
}

std::vector<Optional> layer_backward(const Optional grad_output, const Optional grad_h_n, const Optional grad_c_n,
                                     const Tensor x, const Optional weight_ih, const Tensor weight_hh,
                                     const Optional bias_ih, const Optional bias_hh, const Optional params,
                                     const Tensor h0, const Optional c0, const Optional inputs, const Optional lengths,
                                     const Optional resets, const Optional weight_ih_r, const Optional weight_hh_r,
                                     const Optional bias_ih_r, const Optional bias_hh_r, const Optional params_r,
                                     const Tensor output, const Optional saved, const Optional hidden, int64_t cell,
                                     bool reverse, bool need_x, bool need_weights, bool need_inputs, bool need_params,
                                     const Optional grad_x_out) {
  const BackwardCall call = backward_call({grad_output, grad_h_n, grad_c_n},
                                          {x, weight_ih, weight_hh, bias_ih, bias_hh, params, h0, c0, inputs, lengths,
                                           resets, weight_ih_r, weight_hh_r, bias_ih_r, bias_hh_r, params_r},
                                          {output, saved, hidden}, cell, reverse,
                                          {need_x, need_weights, need_inputs, need_params}, grad_x_out);
  backward(call.passes, static_cast<int>(call.o.D), torch::stable::get_num_threads(), in_parallel);
  const auto add_second = [&](const Optional* grads, Dtype type) {
    if (call.o.D == 2 && grads[0]) add(type, results(*grads[0]), data(grads[1]), grads[0]->numel(), in_parallel);
  };
  add_second(call.grad_x, call.passes[0].dtype), add_second(call.grad_inputs, Dtype::float32);
  std::vector<Optional> gradients;
  add_gradients(gradients, call, grad_x_out);
  return gradients;
}

// The layers of a stack, of one direction, as layer_backward: `incoming` are the gradients of the results of each, of
// whose outputs only the last has one, `kept` what layers_forward has given of each, `needs` 1 or 0 for x, weights,
// inputs and parameters of each. Of the gradients of x only the first layer's is a result.
std::vector<Optional> layers_backward(const std::vector<Optional> incoming, const std::vector<Optional> operands,
                                      const std::vector<Optional> kept, int64_t cell, const std::vector<int64_t> needs,
                                      const Optional grad_x_out) {
  const size_t layers = operands.size() / kArguments;
  STD_TORCH_CHECK(layers > 0 && operands.size() == layers * kArguments && incoming.size() == layers * kIncoming &&
                      kept.size() == layers * kKept && needs.size() == layers * kNeeds,
                  "prnn_native: no list of the operands of each layer");
  std::vector<BackwardCall> calls;  // in the order they run: the last layer's first
  std::vector<Backward> passes;
  calls.reserve(layers), passes.reserve(layers);
  for (size_t i = layers; i-- > 0;) {
    const Arguments given = arguments_of(&operands[i * kArguments], {});
    STD_TORCH_CHECK(given.x && given.x->dim() == 3 && !given.weight_hh_r,
                    "prnn_native: layers_backward takes x [T,B,I] and layers of one direction");
    const Optional *grads = &incoming[i * kIncoming], *results = &kept[i * kKept];
    const int64_t* need = &needs[i * kNeeds];
    const auto sizes = given.x->sizes();
    const Optional grad_x =
        i ? Optional(reused(*given.x, {sizes.begin(), sizes.end()}, given.x->scalar_type())) : grad_x_out;
    calls.push_back(backward_call({calls.empty() ? grads[0] : calls.back().grad_x[0], grads[1], grads[2]}, given,
                                  {results[0], results[1], results[2]}, cell, false,
                                  {i > 0 || need[0], bool(need[1]), bool(need[2]), bool(need[3])}, grad_x));
    passes.push_back(calls.back().passes[0]);
  }
  backward_stack(passes.data(), static_cast<int>(layers), torch::stable::get_num_threads(), in_parallel);
  std::vector<Optional> gradients;
  for (size_t i = 0; i < layers; ++i) {
    const BackwardCall& call = calls[layers - 1 - i];
    add_gradients(gradients, call, i ? call.grad_x[0] : grad_x_out);
  }
  return gradients;
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
  library.def("layers_forward(Tensor?[] operands, int cell, int save_from, Tensor(a!)? out=None) -> Tensor?[]");
  library.def(
      "layers_backward(Tensor?[] incoming, Tensor?[] operands, Tensor?[] kept, int cell, int[] needs, "
      "Tensor(a!)? grad_x_out=None) -> Tensor?[]");
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
  library.impl("layers_forward", TORCH_BOX(&layers_forward));
  library.impl("layers_backward", TORCH_BOX(&layers_backward));
  library.impl("stack_forward", TORCH_BOX(&stack_forward));
}

STABLE_TORCH_LIBRARY_IMPL(prnn_native, CompositeExplicitAutograd, library) {
  library.impl("cpu_isa", TORCH_BOX(&cpu_isa));
  library.impl("cells", TORCH_BOX(&cells));
  library.impl("load_cell", TORCH_BOX(&load_cell));
  library.impl("cell_headers", TORCH_BOX(&cell_headers));
}
