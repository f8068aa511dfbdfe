// torch.ops.prnn_native.memory_*: the schemas and the CPU implementations.
#include "bindings_memory.h"

#include "cpu/memory_driver.h"

namespace {

using namespace prnn;

struct Cpu {
  explicit Cpu(const Tensor&) {}
  static void find_filled(Memory& m) { cpu::find_filled(m); }
  void run(const MemoryForward& pass) const { cpu::memory_forward(pass, in_parallel); }
  void run(const MemoryBackward& pass) const { cpu::memory_backward(pass, in_parallel); }
};

}  // namespace

#define PRNN_MEMORY_OPERANDS \
  "Tensor gates_x, Tensor? weight_hh, Tensor weight_read, Tensor weight_act, Tensor? h0, Tensor memory0, "

STABLE_TORCH_LIBRARY_FRAGMENT(prnn_native, library) {
  library.def("memory_forward(" PRNN_MEMORY_OPERANDS
              "int actions, bool list, float empty, bool rounds, bool whole, bool fresh, bool save) "
              "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def("memory_backward(Tensor? grad_output, Tensor? grad_memory_n, " PRNN_MEMORY_OPERANDS
              "Tensor output, Tensor actions_taken, Tensor saved, int actions, bool list, float empty, bool whole, "
              "bool fresh) "
              "-> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(prnn_native, CPU, library) {
  library.impl("memory_forward", TORCH_BOX(&recurrence<Cpu>));
  library.impl("memory_backward", TORCH_BOX(&recurrence_backward<Cpu>));
}
