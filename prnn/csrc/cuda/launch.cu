// Launches and device limits.
#include "launch.h"

#include <initializer_list>
#include <map>

#include "kernels.h"
#include "recurrence.h"

namespace prnn::cuda {

namespace {

void* mapped(size_t bytes) {
  const std::string what = "prnn: memory for what a kernel records";
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;  // forbidden otherwise while a stream captures a graph
  check(cudaThreadExchangeStreamCaptureMode(&mode), what);
  void* memory = nullptr;
  const cudaError_t error = cudaHostAlloc(&memory, bytes, cudaHostAllocPortable | cudaHostAllocMapped);
  cudaThreadExchangeStreamCaptureMode(&mode);
  check(error, what);
  return memory;
}

template <class Kernel, class Pass>
void launch(Kernel kernel, const Plan& plan, const Directions<Pass>& passes, bool backward, void* workspace,
            void* stream) {
  const Layer& layer = passes.of[0];
  WaitLimit limit = wait_limit(name_of(layer.cell), layer, plan, backward);
  const std::string what = "prnn: " + describe(limit.launch);
  const SharedMemory shared =
      shared_memory_of(plan, {model_of(layer.cell), layer.dtype, layer.B, layer.H, backward, plan.tf32});
  if (const std::string earlier = fault(); !earlier.empty()) throw std::runtime_error(earlier);
  limit.fault = record_for_kernels(mapped);
  unlock(reinterpret_cast<const void*>(kernel), what);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(plan.blocks * plan.teams));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(shared.total);
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute attribute{};
  config.attrs = &attribute;
  if (plan.regime == Regime::cluster) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(plan.blocks), 1, 1};
    config.numAttrs = 1;
  } else if (plan.regime == Regime::grid) {
    attribute.id = cudaLaunchAttributeCooperative;  // all blocks wait for each other, so all must be resident
    attribute.val.cooperative = 1;
    config.numAttrs = 1;
    const auto slot = static_cast<size_t>(shared.state_size), teams = static_cast<size_t>(plan.teams);
    check(cudaMemset2DAsync(workspace, kSlots * slot, 0xFF, kCleared * slot, teams, config.stream), what);
  }
  check(cudaLaunchKernelEx(&config, kernel, plan, limit, passes, workspace), what);
}

template <class Kernel, class Pass>
void launch_all(Kernel kernel, const Pass* passes, int count, const Plan& plan, bool backward, void* workspace,
                void* stream) {
  if (passes[0].B == 0 || passes[0].H == 0) return;
  for (int d = 0; d < count && passes[0].T > 1; ++d) check_steps(passes[d]);
  for (int first = 0; first < count; first += plan.directions)
    launch(kernel, plan, Directions<Pass>{{passes[first], passes[first + plan.directions - 1]}, 0}, backward, workspace,
           stream);
}

// The cell with the largest kernels.
Cell most_gates() {
  Cell most{};
#define PRNN_COMPARE(Struct, name) \
  if (!has_kernels(most) || gates(Cell::name) > gates(most)) most = Cell::name;
  PRNN_CUDA_CELLS(PRNN_COMPARE)
#undef PRNN_COMPARE
  return most;
}

Device ask(int index) {
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, index), "prnn: asking for device " + std::to_string(index));
    return value;
  };
  Device device{};
  device.multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  device.shared_memory = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  device.clock_ghz = attribute(cudaDevAttrClockRate) * 1e-6;
  if (attribute(cudaDevAttrComputeCapabilityMajor) < 9) return device;
  // The number of concurrent clusters depends on the layout of the multiprocessors, which only the driver knows.
  const auto function = reinterpret_cast<const void*>(kernels_of(most_gates(), Dtype::bfloat16).cluster.forward[0]);
  unlock(function, "prnn: asking for clusters");
  for (int size = 0; size < 4; ++size) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(2u << size), config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = static_cast<size_t>(device.shared_memory);
    cudaLaunchAttribute dimension{};
    dimension.id = cudaLaunchAttributeClusterDimension, dimension.val.clusterDim = {2u << size, 1, 1};
    config.attrs = &dimension, config.numAttrs = 1;
    if (cudaOccupancyMaxActiveClusters(&device.clusters[size], function, &config) != cudaSuccess)
      device.clusters[size] = 0, cudaGetLastError();
  }
  return device;
}

}  // namespace

const Device& device_limits(int device) {
  static std::mutex mutex;
  static std::map<int, Device> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto entry = known.find(device);
  return entry != known.end() ? entry->second : known.emplace(device, ask(device)).first->second;
}

void forward(const Forward* passes, int count, const Plan& plan, void* workspace, void* stream) {
  const KernelsOfShapes kernels = kernels_of(passes[0].cell, passes[0].dtype).of(plan.regime);
  launch_all(kernels.forward[plan.shape], passes, count, plan, false, workspace, stream);
}

void backward(const SerialBackward* passes, int count, const Plan& plan, void* workspace, void* stream) {
  const KernelsOfShapes kernels = kernels_of(passes[0].cell, passes[0].dtype).of(plan.regime);
  launch_all(kernels.backward[plan.shape], passes, count, plan, true, workspace, stream);
}

std::string describe(const Plan& plan, Cell cell, Dtype dtype, bool backward) {
  const KernelsOfShapes kernels = kernels_of(cell, dtype).of(plan.regime);
  const auto function = backward ? reinterpret_cast<const void*>(kernels.backward[plan.shape])
                                 : reinterpret_cast<const void*>(kernels.forward[plan.shape]);
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, function), "prnn");
  const SharedMemory shared = shared_memory_of(plan, {model_of(cell), dtype, 0, 0, backward, plan.tf32});
  return describe(plan, shared, attributes.numRegs);
}

}  // namespace prnn::cuda
