// The kernels of networks with differentiable stacks or lists, and their launches.
#include <algorithm>

#include "launch.h"
#include "memory_kernels.cuh"
#include "recurrence.h"

namespace prnn::cuda {

namespace {

template <class Kernel, class Pass>
void launch(Kernel kernel, const Pass& pass, bool backward, int device, void* stream) {
  if (pass.B == 0) return;
  const std::string what = "prnn: memories, T=" + std::to_string(pass.T) + " B=" + std::to_string(pass.B) +
                           " H=" + std::to_string(pass.H) + (backward ? ", backward" : ", forward");
  const Device& limits = device_limits(device);
  const std::string refusal = memory_refusal(pass, limits.shared_memory);
  if (!refusal.empty()) throw std::runtime_error("prnn: " + refusal);
  const auto function = reinterpret_cast<const void*>(kernel);
  unlock(function, what);
  MemoryPlan plan{memory_warps(pass), 0};
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(static_cast<unsigned>(32 * plan.warps));
  config.dynamicSmemBytes = static_cast<size_t>(MemoryShared(pass, backward).bytes(pass));
  config.stream = static_cast<cudaStream_t>(stream);
  int side_by_side = 0;
  check(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&side_by_side, function, 32 * plan.warps, config.dynamicSmemBytes),
      what);
  plan.blocks = std::min<int64_t>(pass.B, int64_t(limits.multiprocessors) * std::max(1, side_by_side));
  config.gridDim = dim3(static_cast<unsigned>(plan.blocks));
  check(cudaLaunchKernelEx(&config, kernel, plan, pass), what);
}

}  // namespace

void memory_forward(const MemoryForward& pass, int device, void* stream) {
  launch(pass.doubles ? memory_forward_kernel<double> : memory_forward_kernel<float>, pass, false, device, stream);
}

void memory_backward(const MemoryBackward& pass, int device, void* stream) {
  launch(pass.doubles ? memory_backward_kernel<double> : memory_backward_kernel<float>, pass, true, device, stream);
}

}  // namespace prnn::cuda
