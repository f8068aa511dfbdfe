// Helpers of the bindings of CUDA kernels.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "bindings.h"
#include "cuda/driver.h"

namespace prnn {
namespace {

// Tensors are on a GPU, whose number is `device`; or, of an emulated one, on the CPU.
struct OnDevice {
  int device;
  std::optional<torch::stable::accelerator::DeviceGuard> guard;

  explicit OnDevice(int64_t index) : device(static_cast<int>(std::max<int64_t>(index, 0))) {
    if (index >= 0 && !cuda::driver::emulated())
      guard.emplace(static_cast<torch::stable::accelerator::DeviceIndex>(index));
    else
      STD_TORCH_CHECK(cuda::driver::emulated(), "prnn_native: the tensors are not on a GPU");
  }
};

}  // namespace
}  // namespace prnn
