// The part of the CUDA driver that kernels compiled on the user's machine need, found in its library at run time: the
// build needs no toolkit. Declarations as in cuda.h of CUDA 12 and 13 (tests/cuda_build/driver.cpp compares them).
#pragma once

#include <cstddef>
#include <string>

namespace prnn::cuda::driver {

using Result = int;
using Handle = void*;  // of a context, module, function or stream

struct LaunchAttribute {
  static constexpr int kCooperative = 2, kClusterDimension = 4;
  int id;
  char padding[4];
  union {
    int cooperative;
    struct {
      unsigned x, y, z;
    } cluster;
    char bytes[64];
  } value;
};

struct LaunchConfig {
  unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
  Handle stream;
  LaunchAttribute* attributes;
  unsigned attribute_count;
};

enum FunctionAttribute : int { kRegisters = 4, kMostDynamicSharedBytes = 8, kNonPortableClusterSize = 14 };
enum DeviceAttribute : int {
  kClockRate = 13,
  kMultiprocessors = 16,
  kCapabilityMajor = 75,
  kCapabilityMinor = 76,
  kMostSharedBytes = 97
};
constexpr unsigned kPortable = 1, kDeviceMap = 2;  // of cuMemHostAlloc
constexpr int kRelaxed = 2;                        // of cuThreadExchangeStreamCaptureMode

// X(name, arguments)
#define PRNN_DRIVER(X)                                                                                        \
  X(cuInit, (unsigned flags))                                                                                 \
  X(cuGetErrorString, (Result error, const char** text))                                                      \
  X(cuDeviceGet, (int* device, int ordinal))                                                                  \
  X(cuDeviceGetAttribute, (int* value, int attribute, int device))                                            \
  X(cuDevicePrimaryCtxRetain, (Handle * context, int device))                                                 \
  X(cuCtxGetCurrent, (Handle * context))                                                                      \
  X(cuCtxSetCurrent, (Handle context))                                                                        \
  X(cuModuleLoadData, (Handle * module, const void* image))                                                   \
  X(cuModuleGetFunction, (Handle * function, Handle module, const char* name))                                \
  X(cuFuncGetAttribute, (int* value, int attribute, Handle function))                                         \
  X(cuFuncSetAttribute, (Handle function, int attribute, int value))                                          \
  X(cuOccupancyMaxActiveClusters, (int* clusters, Handle function, const LaunchConfig* config))               \
  X(cuMemHostAlloc, (void** memory, size_t bytes, unsigned flags))                                            \
  X(cuMemsetD2D32Async, (void* to, size_t pitch, unsigned value, size_t width, size_t height, Handle stream)) \
  X(cuThreadExchangeStreamCaptureMode, (int* mode))                                                           \
  X(cuLaunchKernelEx, (const LaunchConfig* config, Handle function, void** arguments, void** extra))

struct Api {
#define PRNN_MEMBER(name, arguments) Result(*name) arguments;
  PRNN_DRIVER(PRNN_MEMBER)
#undef PRNN_MEMBER
  bool emulated;  // by tests/cuda_emulation, whose device memory is the host's
};

// Throws std::runtime_error where there is no driver, or too old a one.
const Api& api();
bool emulated();  // false where there is no driver

// Throws std::runtime_error with `what` and the driver's words.
void check(Result result, const std::string& what);

}  // namespace prnn::cuda::driver
