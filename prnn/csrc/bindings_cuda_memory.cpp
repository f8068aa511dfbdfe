// torch.ops.prnn_native.memory_* on a GPU. Needs no CUDA headers: streams come from torch's stable ABI.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "bindings_memory.h"
#include "cuda/memory_plan.h"
#include "cuda/recurrence.h"

namespace {

using namespace prnn;

class Gpu {
 public:
  explicit Gpu(const Tensor& tensor) : index_(tensor.get_device()), guard_(index_) {}
  // No search, which would synchronise with the device: all cells may be filled.
  static void find_filled(Memory&) {}
  void run(const MemoryForward& pass) const { cuda::memory_forward(pass, index_, stream()); }
  void run(const MemoryBackward& pass) const { cuda::memory_backward(pass, index_, stream()); }

 private:
  void* stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return stream;
  }

  const int index_;
  const torch::stable::accelerator::DeviceGuard guard_;
};

// Why a GPU cannot run memories of these sizes, as a sentence; empty if it can.
std::string refusal(int64_t H, int64_t S, int64_t N, int64_t K, int64_t actions, bool recurrent, bool doubles,
                    int64_t device) {
  const torch::stable::accelerator::DeviceGuard guard(static_cast<torch::stable::accelerator::DeviceIndex>(device));
  Memory m{};
  m.H = H, m.S = S, m.N = N, m.K = K, m.A = actions, m.doubles = doubles;
  m.weight_hh = recurrent ? &m : nullptr;  // only compared with null
  return cuda::memory_refusal(m, cuda::device_limits(static_cast<int>(device)).shared_memory);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(prnn_native, library) {
  library.def(
      "cuda_memory_refusal(int H, int S, int N, int K, int actions, bool recurrent, bool doubles, int device) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(prnn_native, CUDA, library) {
  library.impl("memory_forward", TORCH_BOX(&recurrence<Gpu>));
  library.impl("memory_backward", TORCH_BOX(&recurrence_backward<Gpu>));
}

STABLE_TORCH_LIBRARY_IMPL(prnn_native, CompositeExplicitAutograd, library) {
  library.impl("cuda_memory_refusal", TORCH_BOX(&refusal));
}
