// The recurrence on a GPU in torch.ops.prnn_native: the serial part alone. The large products before and after it are
// torch's own, called from Python (prnn/ops/cuda.py), which also sees to autograd and explains what does not fit.
//
// Shapes: T time steps, B batch, H hidden size, G gates, S saved; D directions, 2 with a second weight; of a cell
// written in Python N parameters, M inputs, and K columns of weight_hh: H, or of diagonal blocks, or none.
// Needs no CUDA headers and, without the built-in cells' kernels (USE_CUDA), no toolkit: cells written in Python are
// compiled later on.
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>

#include "bindings_cuda.h"
#include "cuda/plan_text.h"
#include "cuda/recurrence.h"
#include "cuda/timeouts.h"
#include "cuda/user_kernels.h"

namespace {

using namespace prnn;
using cuda::Plan;

// A cell by its number: one of the table with kernels in this library, or one written in Python.
struct CudaCell {
  const CellRow& row;
  const cuda::CellModel& model;
};
CudaCell cell_of(int64_t number) {
  if (cuda::is_user_cell(number)) {
    const cuda::UserCudaCell& cell = cuda::user_cuda_cell(number);
    return {cell.row, cell.model};
  }
#ifdef USE_CUDA
  return {kCells[number], cuda::model_of(static_cast<Cell>(number))};
#else
  throw std::runtime_error("prnn_native: built without CUDA");
#endif
}

struct Operands {
  Optional weight_hh[2], bias_hh[2], params[2];
  Tensor h0;
  Optional c0, inputs, lengths, resets;
  CudaCell cell;
  int64_t number, T, B, H, D, G, S, K;
};

// The operands that cells written in Python have besides.
struct UserOperands {
  Optional params, params_r, inputs;
};

Operands operands(int64_t T, const Tensor& weight_hh, const Optional& bias_hh, const Tensor& h0, const Optional& c0,
                  const Optional& lengths, const Optional& resets, const Optional& weight_hh_r,
                  const Optional& bias_hh_r, const UserOperands& user, int64_t number) {
  const CudaCell cell = cell_of(number);
  STD_TORCH_CHECK(weight_hh.dim() == 2 && h0.dim() == 3, "prnn_native takes weight_hh [G*H,K] and h0 [D,B,H]");
  Operands o{{dense(Optional(weight_hh)), dense(weight_hh_r)},
             {dense(bias_hh), dense(bias_hh_r)},
             {dense(user.params), dense(user.params_r)},
             dense(h0),
             dense(c0),
             user.inputs ? Optional(dense_rows(*user.inputs)) : user.inputs,
             dense(lengths),
             dense(resets),
             cell,
             number,
             T,
             h0.size(1),
             h0.size(2),
             weight_hh_r ? 2 : 1,
             cell.row.gates,
             cell.row.saved,
             weight_hh.size(1)};
  const ScalarType dtype = h0.scalar_type();
  for (int d = 0; d < o.D; ++d) {
    check(o.weight_hh[d], {o.G * o.H, o.K}, dtype), check(o.bias_hh[d], {o.G * o.H}, dtype);
    check(o.params[d], {cell.row.params, o.H}, ScalarType::Float);
    STD_TORCH_CHECK(bool(o.params[d]) == (cell.row.params > 0), "prnn_native: the parameters do not fit the cell");
  }
  check(h0, {o.D, o.B, o.H}, dtype);
  if (cell.row.states > 1)
    check(c0, {cell.row.states, o.D, o.B, o.H}, ScalarType::Float);
  else
    check(c0, {o.D, o.B, o.H}, ScalarType::Float);
  check(o.inputs, {o.T, o.B, cell.row.inputs * o.H}, ScalarType::Float);
  check(lengths, {o.B}, ScalarType::Long), check(resets, {o.T, o.B}, ScalarType::Bool);
  STD_TORCH_CHECK(o.H > 0 && bool(c0) == (cell.row.states > 0) && bool(o.inputs) == (cell.row.inputs > 0),
                  "prnn_native: c0 or the inputs do not fit the cell");
  STD_TORCH_CHECK(o.K == o.H || (cuda::is_user_cell(number) && (o.K == 0 || o.H % o.K == 0)),
                  "prnn_native: weight_hh does not fit the cell");
  STD_TORCH_CHECK(o.T <= INT32_MAX && o.B <= INT32_MAX, "prnn_native: T and B must be below 2^31 on a GPU");
  return o;
}

Dtype dtype_of(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half,
                  "prnn_native takes float32, bfloat16 and float16 on a GPU");
  return type == ScalarType::Float ? Dtype::float32 : type == ScalarType::Half ? Dtype::float16 : Dtype::bfloat16;
}

Layer layer(const Operands& o, int64_t d, bool reverse) {
  Layer layer{};
  layer.cell = static_cast<Cell>(o.number), layer.dtype = dtype_of(o.h0);
  layer.reverse = d == 1 || reverse;
  layer.T = o.T, layer.B = o.B, layer.H = o.H, layer.K = cuda::is_user_cell(o.number) ? o.K : -1;
  layer.weight_hh = data(o.weight_hh[d]);
  layer.h0 = shifted(data(o.h0), d, o.B * o.H * element_size(o.h0));
  layer.c0 = floats(o.c0, d, o.B * o.H);
  layer.lengths = data<int64_t>(o.lengths);
  layer.resets = data<bool>(o.resets);
  layer.state_step = o.D * o.B * o.H;
  layer.params = data<float>(o.params[d]);
  if (o.inputs) layer.inputs = sequence(*o.inputs, data(*o.inputs));
  return layer;
}

// The constraints of PRNN_CUDA_REGIME, without it of the name of a regime, or of none, and of PRNN_CUDA_PLAN
// (cuda/plan_text.h).
cuda::PlanFilter filter_of(const std::string& regime) {
  const char* const forced = std::getenv("PRNN_CUDA_REGIME");
  return cuda::plan_filter(forced && *forced ? forced : regime.c_str(), std::getenv("PRNN_CUDA_PLAN"));
}

// The device, whose index is `device`, as far as plans for a cell may use it: at most `most` multiprocessors, 0 for
// all.
cuda::Device limits_of(int64_t cell, int device, int64_t most) {
  const int multiprocessors = static_cast<int>(std::min<int64_t>(most, INT32_MAX));
#ifdef USE_CUDA
  if (!cuda::is_user_cell(cell)) return cuda::limited(cuda::device_limits(device), multiprocessors);
#endif
  (void)cell;
  return cuda::limited(cuda::device_limits_of_driver(device), multiprocessors);
}

// The pass of a layer that a plan is for, of `directions`.
struct Question {
  int64_t cell;
  cuda::Recurrence of;
  int device;
  cuda::Device limits;
  cuda::PlanFilter filter;

  std::optional<Plan> plan(int directions) const {
    if (cuda::is_user_cell(cell)) return cuda::make_user_plan(cell, of, directions, limits, filter, device);
    return cuda::make_plan(of, directions, limits, filter);
  }
  // Both directions concurrently if there is such a plan and it is faster, else sequentially.
  std::optional<Plan> best_plan(int64_t D) const {
    const std::optional<Plan> alone = plan(1);
    if (D == 1) return alone;
    const std::optional<Plan> both = plan(2);
    return both && (!alone || both->microseconds < 2 * alone->microseconds) ? both : alone;
  }
};

Plan plan_for(int64_t cell, const cuda::Recurrence& of, int64_t D, int device, int64_t most,
              const std::string& regime) {
  const auto find = [&](int64_t limit, const std::string& wish) {
    return Question{cell, of, device, limits_of(cell, device, limit), filter_of(wish)}.best_plan(D);
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
Tensor workspace(const Tensor& like, const Plan& plan, const cuda::Recurrence& of) {
  const int64_t bytes = cuda::workspace_bytes(plan, cuda::shared_memory_of(plan, of));
  return uninitialized(like, {bytes / (of.float32() ? 4 : 2)});
}

// Of torch, which has it where it is built with CUDA, whatever this library was built with.
void* stream_of(int device) {
  if (cuda::driver::emulated()) return nullptr;
  using Current = AOTITorchError (*)(int32_t, void**);
  // Python loads torch's libraries without making their symbols those of the process.
  static void* const torch = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  static const auto current =
      torch ? reinterpret_cast<Current>(dlsym(torch, "aoti_torch_get_current_cuda_stream")) : nullptr;
  STD_TORCH_CHECK(current, "prnn_native: this torch is built without CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(current(device, &stream));
  return stream;
}

Tensor like(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return uninitialized(tensor, {sizes.begin(), sizes.end()});
}

// An element of what the cell saves has the dtype of x, or is a float.
Tensor like_saved(const Operands& o, const Tensor& x) {
  const std::vector<int64_t> shape{o.D, o.T, o.B, o.S * o.H};
  if (o.cell.row.rounds_saved) return uninitialized(x, shape);
  return allocated(x, shape, [&] { return torch::stable::new_empty(x, shape, ScalarType::Float); });
}

// Makes a plan of the passes, and launches their kernel.
template <class Pass>
void run(const Operands& o, const Pass* passes, bool backward, bool tf32, int device, int64_t multiprocessors,
         const std::string& regime, const Tensor& like) {
  const int D = static_cast<int>(o.D);
  const cuda::Recurrence of{o.cell.model, passes[0].dtype, o.B, o.H, backward, tf32, passes[0].K};
  const Plan plan = plan_for(o.number, of, D, device, multiprocessors, regime);
  const Tensor scratch = workspace(like, plan, of);
  void* const stream = stream_of(device);
  if (cuda::is_user_cell(o.number)) return cuda::run_user(o.number, passes, D, plan, device, results(scratch), stream);
#ifdef USE_CUDA
  if constexpr (std::is_same_v<Pass, Forward>)
    cuda::forward(passes, D, plan, results(scratch), stream);
  else
    cuda::backward(passes, D, plan, results(scratch), stream);
#endif
}

// The output, h_n, c_n, what the backward pass needs, and h [T,B,D*H] of a cell whose output is another; empty where
// there is none.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor gates_x, const Tensor weight_hh, const Optional bias_hh, const Tensor h0, const Optional c0,
    const Optional lengths, const Optional resets, const Optional weight_hh_r, const Optional bias_hh_r, int64_t cell,
    bool reverse, bool save, bool tf32, int64_t multiprocessors, std::string regime, const Optional params,
    const Optional params_r, const Optional inputs) {
  const OnDevice on(gates_x.get_device());
  const Operands o = operands(gates_x.size(0), weight_hh, bias_hh, h0, c0, lengths, resets, weight_hh_r, bias_hh_r,
                              {params, params_r, inputs}, cell);
  const CellRow& row = o.cell.row;
  const Tensor x = dense_rows(gates_x);
  check(x, {o.T, o.B, o.D * o.G * o.H}, h0.scalar_type());
  const Tensor output = uninitialized(x, {o.T, o.B, o.D * o.H});
  const Tensor h_n = uninitialized(x, {o.D, o.B, o.H});
  const Tensor c_n = c0 ? like(*c0) : uninitialized(x, {0});
  const bool saves = save && o.S > 0, hides = save && row.output >= 0;
  const Tensor saved = saves ? like_saved(o, x) : uninitialized(x, {0});
  const Tensor hidden = hides ? like(output) : uninitialized(x, {0});
  const int64_t size = element_size(x);
  Forward passes[2]{};
  for (int64_t d = 0; d < o.D; ++d) {
    static_cast<Layer&>(passes[d]) = layer(o, d, reverse);
    passes[d].x = sequence(x, shifted(data(x), d, o.G * o.H * size));
    passes[d].bias_hh = data(o.bias_hh[d]);
    passes[d].output = sequence(output, shifted(results(output), d, o.H * size));
    passes[d].h_n = shifted(results(h_n), d, o.B * o.H * size);
    passes[d].c_n = c0 ? floats(c_n, d, o.B * o.H) : nullptr;
    passes[d].saved = saves ? shifted(results(saved), d, o.T * o.B * o.S * o.H * element_size(saved)) : nullptr;
    if (hides) passes[d].hidden = sequence(hidden, shifted(results(hidden), d, o.H * size));
  }
  run(o, passes, false, tf32, on.device, multiprocessors, regime, x);
  return {output, h_n, c_n, saved, hidden};
}

// grad_gates_x, grad_gates_h [T,B,D*G*H] (the latter empty where it is the former), grad_h0, grad_c0; and, where they
// are needed, of the parameters [D,B,N,H], for each sample, and of the inputs [D,T,B,M*H]. Empty where there is none.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Optional grad_output, const Optional grad_h_n, const Optional grad_c_n, const Tensor weight_hh,
    const Tensor h0, const Optional c0, const Optional lengths, const Optional resets, const Optional weight_hh_r,
    const Tensor output, const Tensor saved, int64_t cell, bool reverse, bool tf32, int64_t multiprocessors,
    std::string regime, const Optional params, const Optional params_r, const Optional inputs, const Optional hidden,
    bool need_params, bool need_inputs) {
  const OnDevice on(output.get_device());
  const Operands o = operands(output.size(0), weight_hh, {}, h0, c0, lengths, resets, weight_hh_r, {},
                              {params, params_r, inputs}, cell);
  const CellRow& row = o.cell.row;
  Optional grad, h;
  if (grad_output) grad = dense_rows(*grad_output);
  if (row.output >= 0 && hidden) h = dense_rows(*hidden);
  const Optional grad_h = dense(grad_h_n), grad_c = dense(grad_c_n), kept = dense(Optional(saved));
  const Tensor outputs = dense_rows(output);
  const ScalarType type = h0.scalar_type();
  check(output, {o.T, o.B, o.D * o.H}, type), check(grad, {o.T, o.B, o.D * o.H}, type);
  check(h, {o.T, o.B, o.D * o.H}, type), check(grad_h, {o.D, o.B, o.H}, type);
  if (row.states > 1)
    check(grad_c, {row.states, o.D, o.B, o.H}, ScalarType::Float);
  else
    check(grad_c, {o.D, o.B, o.H}, ScalarType::Float);
  if (o.S) check(kept, {o.D, o.T, o.B, o.S * o.H}, row.rounds_saved ? type : ScalarType::Float);
  STD_TORCH_CHECK(row.output < 0 || h, "prnn_native: the backward pass needs what a forward pass with save=True saved");
  const bool of_params = need_params && row.params > 0, of_inputs = need_inputs && row.inputs > 0;
  const Tensor grad_x = uninitialized(output, {o.T, o.B, o.D * o.G * o.H});
  const Tensor grad_gates_h = row.splits_gates ? like(grad_x) : uninitialized(output, {0});
  const Tensor grad_h0 = uninitialized(h0, {o.D, o.B, o.H});
  const Tensor grad_c0 = c0 ? like(*c0) : uninitialized(h0, {0});
  const Tensor grad_params = of_params ? uninitialized(*params, {o.D, o.B, row.params, o.H}) : uninitialized(h0, {0});
  const Tensor grad_inputs =
      of_inputs ? uninitialized(*inputs, {o.D, o.T, o.B, row.inputs * o.H}) : uninitialized(h0, {0});
  const int64_t size = element_size(output), state = o.B * o.H * size;
  cuda::SerialBackward passes[2]{};
  for (int64_t d = 0; d < o.D; ++d) {
    static_cast<Layer&>(passes[d]) = layer(o, d, reverse);
    cuda::SerialBackward& pass = passes[d];
    pass.output = sequence(outputs, shifted(data(outputs), d, o.H * size));
    if (h) pass.hidden = sequence(*h, shifted(data(*h), d, o.H * size));
    pass.saved = o.S ? shifted(data(kept), d, o.T * o.B * o.S * o.H * element_size(*kept)) : nullptr;
    if (grad) pass.grad_output = sequence(*grad, shifted(data(*grad), d, o.H * size));
    pass.grad_h_n = shifted(data(grad_h), d, state);
    pass.grad_c_n = floats(grad_c, d, o.B * o.H);
    pass.grad_x = sequence(grad_x, shifted(results(grad_x), d, o.G * o.H * size));
    pass.grad_gates_h = row.splits_gates ? shifted(results(grad_gates_h), d, o.G * o.H * size) : nullptr;
    pass.grad_h0 = shifted(results(grad_h0), d, state);
    pass.grad_c0 = c0 ? floats(grad_c0, d, o.B * o.H) : nullptr;
    if (of_params) pass.grad_params_of_samples = floats(grad_params, d, o.B * row.params * o.H);
    const int64_t steps = o.B * row.inputs * o.H;
    if (of_inputs) pass.grad_inputs = {floats(grad_inputs, d, o.T * steps), steps, row.inputs * o.H};
  }
  run(o, passes, true, tf32, on.device, multiprocessors, regime, output);
  return {grad_x, grad_gates_h, grad_h0, grad_c0, grad_params, grad_inputs};
}

// A plan in words.
std::string words_of(int64_t number, const Plan& plan, const cuda::Recurrence& of, int device) {
#ifdef USE_CUDA
  if (!cuda::is_user_cell(number)) return cuda::describe(plan, static_cast<Cell>(number), of.dtype, of.backward);
#endif
  return cuda::describe_user(number, plan, of, device);
}

// multiprocessors, here and below: at most so many may be used, 0: all. regime: the only one, where it is not empty.
// K: columns of weight_hh, -1: H.
// The plans of one direction, forward and backward, one line each: the expected microseconds of a step and a
// description; an empty line where the weights fit into no regime.
std::string explain(int64_t number, int64_t dtype, int64_t B, int64_t H, bool tf32, int64_t device,
                    int64_t multiprocessors, std::string regime, int64_t K) {
  const CudaCell cell = cell_of(number);
  const OnDevice on(device);
  std::ostringstream text;
  cuda::PlanFilter filter = filter_of(regime);
  filter.directions.reset();  // directions=2 constrains bidirectional layers only
  const cuda::Device limits = limits_of(number, on.device, multiprocessors);
  for (const bool back : {false, true}) {
    const cuda::Recurrence of{cell.model, static_cast<Dtype>(dtype), B, H, back, tf32, K};
    const std::optional<Plan> plan = Question{number, of, on.device, limits, filter}.plan(1);
    if (!plan) {
      text << "\n";
      continue;
    }
    text << plan->microseconds << " " << words_of(number, *plan, of, on.device) << "\n";
  }
  return text.str();
}

// The plan of the forward or backward pass of a layer and the device limits it depends on, as JSON. With two
// directions, a plan for one is run twice.
std::string plan(int64_t number, int64_t dtype, int64_t B, int64_t H, bool backward, bool tf32, int64_t directions,
                 int64_t device, int64_t multiprocessors) {
  const CudaCell cell = cell_of(number);
  STD_TORCH_CHECK(dtype >= 0 && dtype <= 2 && directions >= 1 && directions <= 2,
                  "prnn_native: there is no such dtype or number of directions");
  const OnDevice on(device);
  const cuda::Device limits = limits_of(number, on.device, multiprocessors);
  const cuda::Recurrence of{cell.model, static_cast<Dtype>(dtype), B, H, backward, tf32};
  const auto plan = Question{number, of, on.device, limits, filter_of("")}.best_plan(directions);
  return "{\"device\": " + cuda::json_of(limits) + ", \"plan\": " + cuda::json_of(plan) + "}";
}

// Comma-separated names, in the order of the ids, of the cells with CUDA kernels in this library.
std::string cuda_cells() {
  std::string names;
#ifdef USE_CUDA
  for (int64_t number = 0; number < kCellCount; ++number)
    if (const Cell cell = static_cast<Cell>(number); cuda::has_kernels(cell))
      names += (names.empty() ? "" : ",") + std::string(name_of(cell));
#endif
  return names;
}

// The record of a kernel that timed out in a wait, as a sentence; empty without one.
std::string fault() { return cuda::fault(); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(prnn_native, library) {
  library.def(
      "cuda_recurrence_forward(Tensor gates_x, Tensor weight_hh, Tensor? bias_hh, Tensor h0, Tensor? c0, "
      "Tensor? lengths, Tensor? resets, Tensor? weight_hh_r, Tensor? bias_hh_r, int cell, bool reverse, bool save, "
      "bool tf32, int multiprocessors=0, str regime=\"\", Tensor? params=None, Tensor? params_r=None, "
      "Tensor? inputs=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "cuda_recurrence_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor weight_hh, Tensor h0, "
      "Tensor? c0, Tensor? lengths, Tensor? resets, Tensor? weight_hh_r, Tensor output, Tensor saved, int cell, "
      "bool reverse, bool tf32, int multiprocessors=0, str regime=\"\", Tensor? params=None, Tensor? params_r=None, "
      "Tensor? inputs=None, Tensor? hidden=None, bool need_params=False, bool need_inputs=False) -> (Tensor, Tensor, "
      "Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "cuda_explain(int cell, int dtype, int B, int H, bool tf32, int device, int multiprocessors=0, "
      "str regime=\"\", int K=-1) -> str");
  library.def(
      "cuda_plan(int cell, int dtype, int B, int H, bool backward, bool tf32, int directions, int device, "
      "int multiprocessors=0) -> str");
  library.def("cuda_cells() -> str");
  library.def("cuda_fault() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(prnn_native, CompositeExplicitAutograd, library) {
  library.impl("cuda_recurrence_forward", TORCH_BOX(&forward));
  library.impl("cuda_recurrence_backward", TORCH_BOX(&backward));
  library.impl("cuda_explain", TORCH_BOX(&explain));
  library.impl("cuda_plan", TORCH_BOX(&plan));
  library.impl("cuda_cells", TORCH_BOX(&cuda_cells));
  library.impl("cuda_fault", TORCH_BOX(&fault));
}
