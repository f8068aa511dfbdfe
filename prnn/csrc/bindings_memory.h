// The operators of networks with differentiable stacks or lists, for any device type. Argument errors and autograd are
// handled in Python (prnn/ops/memory.py); the checks here only protect the kernels.
//
// Shapes: T time steps, B batch, H hidden size, S memories, N cells each, K of them read, A actions.
//
// A Device(tensor) is a device guard. It has `run` for either pass, and a static find_filled(Memory&) for memories that
// may be partly empty.
#pragma once

#include "bindings.h"
#include "stack_memory.h"

namespace prnn {

namespace {

// The operands, dense, kept alive while the kernels run.
struct Operands {
  Tensor gates_x;
  Optional weight_hh;
  Tensor weight_read, weight_act;
  Optional h0;
  Tensor memory0;
  int64_t A;
  bool list;
  double empty;
  bool whole;  // treat all of memory0 as filled: its gradient is required
  bool fresh;  // asserts that memory0 is `empty` everywhere

  Operands(const Tensor& gates_x, const Optional& weight_hh, const Tensor& weight_read, const Tensor& weight_act,
           const Optional& h0, const Tensor& memory0, int64_t A, bool list, double empty, bool whole, bool fresh)
      : gates_x(dense(gates_x)),
        weight_hh(dense(weight_hh)),
        weight_read(dense(weight_read)),
        weight_act(dense(weight_act)),
        h0(dense(h0)),
        memory0(dense(memory0)),
        A(A),
        list(list),
        empty(empty),
        whole(whole),
        fresh(fresh) {}

  template <class Device>
  Memory memory() const {
    Memory m{};
    const ScalarType dtype = gates_x.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                    "prnn_native: memories are float32 or float64");
    STD_TORCH_CHECK(gates_x.dim() == 3 && memory0.dim() == 3 && weight_read.dim() == 2 && weight_act.dim() == 2,
                    "prnn_native: gates_x is [T,B,H], memory0 [N,B,S]");
    m.list = list, m.doubles = dtype == ScalarType::Double;
    m.T = gates_x.size(0), m.B = gates_x.size(1), m.H = gates_x.size(2);
    m.N = memory0.size(0), m.S = memory0.size(2), m.A = A;
    m.head = list ? m.N / 2 : 0, m.empty = empty;
    STD_TORCH_CHECK(m.S > 0 && weight_read.size(1) % m.S == 0, "prnn_native: weight_read is [H,S*K]");
    m.K = weight_read.size(1) / m.S;
    STD_TORCH_CHECK(m.H > 0 && m.K > 0 && m.head + m.K <= m.N && (A == 3 || (A == 2 && !list)),
                    "prnn_native: a memory's sizes do not fit");
    check(weight_hh, {m.H, m.H}, dtype), check(weight_read, {m.H, m.S * m.K}, dtype);
    check(weight_act, {(A + 1) * m.S, m.H}, dtype), check(memory0, {m.N, m.B, m.S}, dtype);
    check(h0, {m.B, m.H}, dtype);
    STD_TORCH_CHECK(!weight_hh || h0, "prnn_native: weight_hh requires h0");
    for (const Optional& other : {weight_hh, Optional(weight_read), Optional(weight_act), h0, Optional(memory0)})
      STD_TORCH_CHECK(!other || other->get_device() == gates_x.get_device(),
                      "prnn_native: the operands are on different devices");
    m.gates_x = data(gates_x), m.weight_hh = data(weight_hh), m.weight_read = data(weight_read);
    m.weight_act = data(weight_act), m.h0 = data(h0), m.memory0 = data(memory0);
    m.first = 0, m.last = m.N;
    if (fresh && !whole)
      m.first = m.last = m.head;
    else if (!whole)
      Device::find_filled(m);
    return m;
  }
};

// Output, the final memories, and for the backward pass (empty without `save`): actions, reads, saved.
template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> recurrence(const Tensor gates_x, const Optional weight_hh,
                                                              const Tensor weight_read, const Tensor weight_act,
                                                              const Optional h0, const Tensor memory0, int64_t A,
                                                              bool list, double empty, bool rounds, bool whole,
                                                              bool fresh, bool save) {
  const Device device(gates_x);
  const Operands o(gates_x, weight_hh, weight_read, weight_act, h0, memory0, A, list, empty, whole, fresh);
  MemoryForward pass{};
  static_cast<Memory&>(pass) = o.memory<Device>();
  pass.rounds = rounds;
  const auto allocate = [&](bool wanted, std::vector<int64_t> shape) {
    return uninitialized(gates_x, wanted ? shape : std::vector<int64_t>{0});
  };
  const Tensor output = allocate(true, {pass.T, pass.B, pass.H}), memory_n = allocate(true, {pass.N, pass.B, pass.S});
  const Tensor actions = allocate(save, {pass.T, A + 1, pass.B, pass.S});
  const Tensor reads = allocate(save, {pass.T, pass.B, pass.S * pass.K});
  const Tensor saved = allocate(save, {pass.saved_before(pass.T)});
  pass.output = results(output), pass.memory_n = results(memory_n);
  if (save) pass.actions = results(actions), pass.reads = results(reads), pass.saved = results(saved);
  device.run(pass);
  return {output, memory_n, actions, reads, saved};
}

// Gradients of gates_x, of weight_act h [T,B,S*A+S], and of memory0 (empty unless `whole`).
template <class Device>
std::tuple<Tensor, Tensor, Tensor> recurrence_backward(const Optional grad_output, const Optional grad_memory_n,
                                                       const Tensor gates_x, const Optional weight_hh,
                                                       const Tensor weight_read, const Tensor weight_act,
                                                       const Optional h0, const Tensor memory0, const Tensor output,
                                                       const Tensor actions, const Tensor saved, int64_t A, bool list,
                                                       double empty, bool whole, bool fresh) {
  const Device device(gates_x);
  const Operands o(gates_x, weight_hh, weight_read, weight_act, h0, memory0, A, list, empty, whole, fresh);
  const Optional grad = dense(grad_output), grad_memory = dense(grad_memory_n);
  const Tensor results_of_forward[] = {dense(output), dense(actions), dense(saved)};
  MemoryBackward pass{};
  static_cast<Memory&>(pass) = o.memory<Device>();
  const ScalarType dtype = gates_x.scalar_type();
  check(output, {pass.T, pass.B, pass.H}, dtype), check(grad, {pass.T, pass.B, pass.H}, dtype);
  check(grad_memory, {pass.N, pass.B, pass.S}, dtype), check(actions, {pass.T, A + 1, pass.B, pass.S}, dtype);
  check(saved, {pass.saved_before(pass.T)}, dtype);
  const Tensor grad_gates_x = uninitialized(gates_x, {pass.T, pass.B, pass.H});
  const Tensor grad_act = uninitialized(gates_x, {pass.T, pass.B, (A + 1) * pass.S});
  const Tensor grad_memory0 = whole ? uninitialized(gates_x, {pass.N, pass.B, pass.S}) : uninitialized(gates_x, {0});
  pass.output = data(results_of_forward[0]), pass.actions = data(results_of_forward[1]);
  pass.saved = data(results_of_forward[2]);
  pass.grad_output = data(grad), pass.grad_memory_n = data(grad_memory);
  pass.grad_gates_x = results(grad_gates_x), pass.grad_act = results(grad_act);
  pass.grad_memory0 = whole ? results(grad_memory0) : nullptr;
  device.run(pass);
  return {grad_gates_x, grad_act, grad_memory0};
}

}  // namespace

}  // namespace prnn
