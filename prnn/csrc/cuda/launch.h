// Helpers of all launches.
#pragma once

#include <cuda_runtime.h>

#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

#include "timeouts.h"

namespace prnn::cuda {

inline void check(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // else the next call would report it again
  const std::string cause = fault();
  throw std::runtime_error(cause.empty() ? what + ": " + cudaGetErrorString(error) : cause);
}

// Raises a kernel's limits of shared memory and cluster size to the maximum: once for each device, since a smaller
// limit, set for a smaller plan, could come between another thread's limit and its launch.
inline void unlock(const void* function, const std::string& what) {
  static std::mutex mutex;
  static std::set<std::pair<int, const void*>> unlocked;
  int device = 0, most = 0, major = 0;
  check(cudaGetDevice(&device), what);
  const std::lock_guard<std::mutex> lock(mutex);
  if (unlocked.count({device, function})) return;
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), what);
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), what);
  check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, most), what);
  if (major >= 9) check(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), what);
  unlocked.insert({device, function});
}

}  // namespace prnn::cuda
