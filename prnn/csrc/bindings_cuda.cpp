// The recurrence on a GPU in torch.ops.prnn_native: the serial part alone. The large products before and after it are
// torch's own, called from Python (prnn/ops/cuda.py), which also sees to autograd and explains what does not fit.
//
// Shapes: T time steps, B batch, H hidden size, G gates, S saved; D directions, 2 with a second weight.
// Needs no CUDA headers: streams come from torch's stable ABI.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>

#include "bindings.h"
#include "cuda/plan_text.h"
#include "cuda/recurrence.h"
#include "cuda/wait.h"

namespace {

using namespace prnn;
using cuda::Plan;

struct Operands {
  Optional weight_hh[2], bias_hh[2];
  Tensor h0;
  Optional c0, lengths, resets;
  int64_t T, B, H, D, G, S;
};

Cell cell_of(int64_t number) {
  STD_TORCH_CHECK(is_cell(number), "prnn_native: there is no such cell");
  const Cell cell = static_cast<Cell>(number);
  if (!cuda::has_kernels(cell)) cuda::no_kernels(cell);
  return cell;
}

Operands operands(int64_t T, const Tensor& weight_hh, const Optional& bias_hh, const Tensor& h0, const Optional& c0,
                  const Optional& lengths, const Optional& resets, const Optional& weight_hh_r,
                  const Optional& bias_hh_r, int64_t number) {
  const Cell cell = cell_of(number);
  STD_TORCH_CHECK(weight_hh.dim() == 2 && h0.dim() == 3, "prnn_native takes weight_hh [G*H,H] and h0 [D,B,H]");
  Operands o{{dense(Optional(weight_hh)), dense(weight_hh_r)},
             {dense(bias_hh), dense(bias_hh_r)},
             dense(h0),
             dense(c0),
             dense(lengths),
             dense(resets),
             T,
             h0.size(1),
             weight_hh.size(1),
             weight_hh_r ? 2 : 1,
             gates(cell),
             saved(cell)};
  const ScalarType dtype = h0.scalar_type();
  for (int d = 0; d < o.D; ++d) check(o.weight_hh[d], {o.G * o.H, o.H}, dtype), check(o.bias_hh[d], {o.G * o.H}, dtype);
  check(h0, {o.D, o.B, o.H}, dtype), check(c0, {o.D, o.B, o.H}, ScalarType::Float);
  check(lengths, {o.B}, ScalarType::Long), check(resets, {o.T, o.B}, ScalarType::Bool);
  STD_TORCH_CHECK(o.H > 0 && bool(c0) == has_c(cell), "prnn_native: c0 does not fit the cell");
  STD_TORCH_CHECK(o.T <= INT32_MAX && o.B <= INT32_MAX, "prnn_native: T and B must be below 2^31 on a GPU");
  return o;
}

Dtype dtype_of(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half,
                  "prnn_native takes float32, bfloat16 and float16 on a GPU");
  return type == ScalarType::Float ? Dtype::float32 : type == ScalarType::Half ? Dtype::float16 : Dtype::bfloat16;
}

Layer layer(const Operands& o, int64_t d, int64_t cell, bool reverse) {
  Layer layer{};
  layer.cell = static_cast<Cell>(cell), layer.dtype = dtype_of(o.h0);
  layer.reverse = d == 1 || reverse;
  layer.T = o.T, layer.B = o.B, layer.H = o.H;
  layer.weight_hh = data(o.weight_hh[d]);
  layer.h0 = shifted(data(o.h0), d, o.B * o.H * element_size(o.h0));
  layer.c0 = floats(o.c0, d, o.B * o.H);
  layer.lengths = data<int64_t>(o.lengths);
  layer.resets = data<bool>(o.resets);
  return layer;
}

// The constraints of PRNN_CUDA_REGIME, without it of the name of a regime, or of none, and of PRNN_CUDA_PLAN
// (cuda/plan_text.h).
cuda::PlanFilter filter_of(const std::string& regime) {
  const char* const forced = std::getenv("PRNN_CUDA_REGIME");
  return cuda::plan_filter(forced && *forced ? forced : regime.c_str(), std::getenv("PRNN_CUDA_PLAN"));
}

// The device, whose index is `device`, as far as plans may use it: at most `most` multiprocessors, 0 for all.
cuda::Device limits_of(int device, int64_t most) {
  return cuda::limited(cuda::device_limits(device), static_cast<int>(std::min<int64_t>(most, INT32_MAX)));
}

// Both directions concurrently if there is such a plan and it is faster, else sequentially.
std::optional<Plan> find_plan(Cell cell, Dtype dtype, int64_t B, int64_t H, bool backward, bool tf32, int64_t D,
                              const cuda::Device& limits, const cuda::PlanFilter& filter) {
  const std::optional<Plan> alone = cuda::make_plan(cell, dtype, B, H, backward, tf32, 1, limits, filter);
  if (D == 1) return alone;
  const std::optional<Plan> both = cuda::make_plan(cell, dtype, B, H, backward, tf32, 2, limits, filter);
  return both && (!alone || both->microseconds < 2 * alone->microseconds) ? both : alone;
}

Plan plan_for(Cell cell, Dtype dtype, int64_t B, int64_t H, bool backward, bool tf32, int64_t D, int device,
              int64_t most, const std::string& regime) {
  const auto find = [&](int64_t limit, const std::string& wish) {
    return find_plan(cell, dtype, B, H, backward, tf32, D, limits_of(device, limit), filter_of(wish));
  };
  std::optional<Plan> plan = find(most, regime);
  // Where the limit was lowered after these kernels were chosen, by the forward pass or for a graph, nothing else can
  // run any more.
  if (!plan) plan = find(most, "");
  if (!plan) plan = find(0, "");
  STD_TORCH_CHECK(
      plan.has_value(),
      "prnn_native: the weights fit into no regime of this GPU that PRNN_CUDA_REGIME and PRNN_CUDA_PLAN admit");
  return *plan;
}

// The exchange buffer of a plan; allocated by torch, whose caching allocator tracks its use on the stream.
Tensor workspace(const Tensor& like, const Plan& plan, Cell cell, bool backward, Dtype dtype) {
  const bool float32 = dtype == Dtype::float32;
  const int64_t bytes = cuda::workspace_bytes(plan, cuda::SharedMemory(plan, cell, backward, float32));
  return uninitialized(like, {bytes / (float32 ? 4 : 2)});
}

void* stream_of(int device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return stream;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor gates_x, const Tensor weight_hh, const Optional bias_hh,
                                                   const Tensor h0, const Optional c0, const Optional lengths,
                                                   const Optional resets, const Optional weight_hh_r,
                                                   const Optional bias_hh_r, int64_t cell, bool reverse, bool save,
                                                   bool tf32, int64_t multiprocessors, std::string regime) {
  const int device = gates_x.get_device();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Operands o =
      operands(gates_x.size(0), weight_hh, bias_hh, h0, c0, lengths, resets, weight_hh_r, bias_hh_r, cell);
  const Tensor x = dense_rows(gates_x);
  check(x, {o.T, o.B, o.D * o.G * o.H}, h0.scalar_type());
  const Tensor output = uninitialized(x, {o.T, o.B, o.D * o.H});
  const Tensor h_n = uninitialized(x, {o.D, o.B, o.H});
  const Tensor c_n = c0 ? uninitialized(*c0, {o.D, o.B, o.H}) : uninitialized(x, {0});
  const bool saves = save && o.S > 0;
  const Tensor saved =
      uninitialized(x, saves ? std::vector<int64_t>{o.D, o.T, o.B, o.S * o.H} : std::vector<int64_t>{0});
  const int64_t size = element_size(x);
  Forward passes[2]{};
  for (int64_t d = 0; d < o.D; ++d) {
    static_cast<Layer&>(passes[d]) = layer(o, d, cell, reverse);
    passes[d].x = sequence(x, shifted(data(x), d, o.G * o.H * size));
    passes[d].bias_hh = data(o.bias_hh[d]);
    passes[d].output = sequence(output, shifted(results(output), d, o.H * size));
    passes[d].h_n = shifted(results(h_n), d, o.B * o.H * size);
    passes[d].c_n = c0 ? floats(c_n, d, o.B * o.H) : nullptr;
    passes[d].saved = saves ? shifted(results(saved), d, o.T * o.B * o.S * o.H * size) : nullptr;
  }
  const Dtype dtype = dtype_of(x);
  const Plan plan = plan_for(passes[0].cell, dtype, o.B, o.H, false, tf32, o.D, device, multiprocessors, regime);
  const Tensor scratch = workspace(x, plan, passes[0].cell, false, dtype);
  cuda::forward(passes, static_cast<int>(o.D), plan, results(scratch), stream_of(device));
  return {output, h_n, c_n, saved};
}

// grad_gates_x, grad_gates_h [T,B,D*G*H] (the latter empty where it is the former), grad_h0, grad_c0 (or empty).
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Optional grad_output, const Optional grad_h_n,
                                                    const Optional grad_c_n, const Tensor weight_hh, const Tensor h0,
                                                    const Optional c0, const Optional lengths, const Optional resets,
                                                    const Optional weight_hh_r, const Tensor output, const Tensor saved,
                                                    int64_t cell, bool reverse, bool tf32, int64_t multiprocessors,
                                                    std::string regime) {
  const int device = output.get_device();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Operands o = operands(output.size(0), weight_hh, {}, h0, c0, lengths, resets, weight_hh_r, {}, cell);
  Optional grad;
  if (grad_output) grad = dense_rows(*grad_output);
  const Optional grad_h = dense(grad_h_n), grad_c = dense(grad_c_n), kept = dense(Optional(saved));
  const Tensor outputs = dense_rows(output);
  const ScalarType type = h0.scalar_type();
  check(output, {o.T, o.B, o.D * o.H}, type), check(grad, {o.T, o.B, o.D * o.H}, type);
  check(grad_h, {o.D, o.B, o.H}, type), check(grad_c, {o.D, o.B, o.H}, ScalarType::Float);
  if (o.S) check(kept, {o.D, o.T, o.B, o.S * o.H}, type);
  const bool splits = splits_gates(static_cast<Cell>(cell));
  const Tensor grad_x = uninitialized(output, {o.T, o.B, o.D * o.G * o.H});
  const Tensor grad_gates_h = splits ? uninitialized(output, {o.T, o.B, o.D * o.G * o.H}) : uninitialized(output, {0});
  const Tensor grad_h0 = uninitialized(h0, {o.D, o.B, o.H});
  const Tensor grad_c0 = c0 ? uninitialized(*c0, {o.D, o.B, o.H}) : uninitialized(h0, {0});
  const int64_t size = element_size(output), state = o.B * o.H * size;
  cuda::SerialBackward passes[2]{};
  for (int64_t d = 0; d < o.D; ++d) {
    static_cast<Layer&>(passes[d]) = layer(o, d, cell, reverse);
    cuda::SerialBackward& pass = passes[d];
    pass.output = sequence(outputs, shifted(data(outputs), d, o.H * size));
    pass.saved = o.S ? shifted(data(kept), d, o.T * o.B * o.S * o.H * size) : nullptr;
    if (grad) pass.grad_output = sequence(*grad, shifted(data(*grad), d, o.H * size));
    pass.grad_h_n = shifted(data(grad_h), d, state);
    pass.grad_c_n = floats(grad_c, d, o.B * o.H);
    pass.grad_x = sequence(grad_x, shifted(results(grad_x), d, o.G * o.H * size));
    pass.grad_gates_h = splits ? shifted(results(grad_gates_h), d, o.G * o.H * size) : nullptr;
    pass.grad_h0 = shifted(results(grad_h0), d, state);
    pass.grad_c0 = c0 ? floats(grad_c0, d, o.B * o.H) : nullptr;
  }
  const Dtype dtype = dtype_of(h0);
  const Plan plan = plan_for(passes[0].cell, dtype, o.B, o.H, true, tf32, o.D, device, multiprocessors, regime);
  const Tensor scratch = workspace(output, plan, passes[0].cell, true, dtype);
  cuda::backward(passes, static_cast<int>(o.D), plan, results(scratch), stream_of(device));
  return {grad_x, grad_gates_h, grad_h0, grad_c0};
}

// multiprocessors, here and below: at most so many may be used, 0: all. regime: the only one, where it is not empty.
// The plans of one direction, forward and backward, one line each: the expected microseconds of a step and a
// description; an empty line where the weights fit into no regime.
std::string explain(int64_t number, int64_t dtype, int64_t B, int64_t H, bool tf32, int64_t device,
                    int64_t multiprocessors, std::string regime) {
  const Cell cell = cell_of(number);
  const torch::stable::accelerator::DeviceGuard guard(static_cast<torch::stable::accelerator::DeviceIndex>(device));
  std::ostringstream text;
  cuda::PlanFilter filter = filter_of(regime);
  filter.directions.reset();  // directions=2 constrains bidirectional layers only
  const cuda::Device limits = limits_of(static_cast<int>(device), multiprocessors);
  for (const bool back : {false, true}) {
    const std::optional<Plan> plan =
        cuda::make_plan(cell, static_cast<Dtype>(dtype), B, H, back, tf32, 1, limits, filter);
    if (!plan) {
      text << "\n";
      continue;
    }
    text << plan->microseconds << " " << cuda::describe(*plan, cell, static_cast<Dtype>(dtype), back) << "\n";
  }
  return text.str();
}

// The plan of the forward or backward pass of a layer and the device limits it depends on, as JSON. With two
// directions, a plan for one is run twice.
std::string plan(int64_t number, int64_t dtype, int64_t B, int64_t H, bool backward, bool tf32, int64_t directions,
                 int64_t device, int64_t multiprocessors) {
  const Cell cell = cell_of(number);
  STD_TORCH_CHECK(dtype >= 0 && dtype <= 2 && directions >= 1 && directions <= 2,
                  "prnn_native: there is no such dtype or number of directions");
  const torch::stable::accelerator::DeviceGuard guard(static_cast<torch::stable::accelerator::DeviceIndex>(device));
  const cuda::Device limits = limits_of(static_cast<int>(device), multiprocessors);
  const auto plan = find_plan(cell, static_cast<Dtype>(dtype), B, H, backward, tf32, directions, limits, filter_of(""));
  return "{\"device\": " + cuda::json_of(limits) + ", \"plan\": " + cuda::json_of(plan) + "}";
}

// Comma-separated names, in the order of the ids, of the cells with CUDA kernels.
std::string cuda_cells() {
  std::string names;
  for (int64_t number = 0; number < kCellCount; ++number)
    if (const Cell cell = static_cast<Cell>(number); cuda::has_kernels(cell))
      names += (names.empty() ? "" : ",") + std::string(name_of(cell));
  return names;
}

// The record of a kernel that timed out in a wait, as a sentence; empty without one.
std::string fault() { return cuda::fault(); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(prnn_native, library) {
  library.def(
      "cuda_recurrence_forward(Tensor gates_x, Tensor weight_hh, Tensor? bias_hh, Tensor h0, Tensor? c0, "
      "Tensor? lengths, Tensor? resets, Tensor? weight_hh_r, Tensor? bias_hh_r, int cell, bool reverse, bool save, "
      "bool tf32, int multiprocessors=0, str regime=\"\") -> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "cuda_recurrence_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor weight_hh, Tensor h0, "
      "Tensor? c0, Tensor? lengths, Tensor? resets, Tensor? weight_hh_r, Tensor output, Tensor saved, int cell, "
      "bool reverse, bool tf32, int multiprocessors=0, str regime=\"\") -> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "cuda_explain(int cell, int dtype, int B, int H, bool tf32, int device, int multiprocessors=0, "
      "str regime=\"\") -> str");
  library.def(
      "cuda_plan(int cell, int dtype, int B, int H, bool backward, bool tf32, int directions, int device, "
      "int multiprocessors=0) -> str");
  library.def("cuda_cells() -> str");
  library.def("cuda_fault() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(prnn_native, CUDA, library) {
  library.impl("cuda_recurrence_forward", TORCH_BOX(&forward));
  library.impl("cuda_recurrence_backward", TORCH_BOX(&backward));
}

STABLE_TORCH_LIBRARY_IMPL(prnn_native, CompositeExplicitAutograd, library) {
  library.impl("cuda_explain", TORCH_BOX(&explain));
  library.impl("cuda_plan", TORCH_BOX(&plan));
  library.impl("cuda_cells", TORCH_BOX(&cuda_cells));
  library.impl("cuda_fault", TORCH_BOX(&fault));
}
