// A CUDA driver of an emulated GPU, for cells written in Python: the functions of csrc/cuda/driver.h, under its names.
// A module's image is the path of a shared object that tests/cuda_emulation/cells.py has compiled; device memory is the
// host's. The GPU is small: few teams run side by side, so that tiles and heads take turns.
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "driver.h"

namespace {

using namespace prnn::cuda::driver;

constexpr int kCount = 12, kSharedBytes = 227 << 10;
constexpr Result kWrong = 1;

using Emulate = const char* (*)(int blocks, int rows, int threads, int cluster, int shared_bytes, uint64_t seed,
                                void** arguments);

uint64_t seed = 1;
int launches = 0, wrong = 0;  // so far; those whose arguments no driver would take
LaunchConfig last{};
std::string error;
int context;  // its address is the handle of the one there is

}  // namespace

extern "C" {

// For the tests: the seed of the next launches; what was launched.
void prnn_emulated(uint64_t next) { seed = next * 1000003; }
int prnn_emulated_launches() { return launches; }
void prnn_emulated_last(unsigned* grid_x, unsigned* grid_y, unsigned* cluster, int* cooperative) {
  const LaunchAttribute* a = last.attribute_count ? last.attributes : nullptr;
  *grid_x = last.grid_x, *grid_y = last.grid_y;
  *cluster = a && a->id == LaunchAttribute::kClusterDimension ? a->value.cluster.x : 0;
  *cooperative = a && a->id == LaunchAttribute::kCooperative ? a->value.cooperative : 0;
}

Result cuInit(unsigned) { return 0; }
Result cuGetExportTable(const void**, const void*) { return kWrong; }  // NVRTC asks for it, in the same process
Result cuGetErrorString(Result, const char** text) { return *text = error.c_str(), 0; }
Result cuDeviceGet(int* device, int ordinal) { return *device = ordinal, ordinal == 0 ? 0 : kWrong; }
Result cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == kClockRate         ? 1700000
           : attribute == kMultiprocessors ? kCount
           : attribute == kCapabilityMajor ? 9
           : attribute == kMostSharedBytes ? kSharedBytes
                                           : 0;
  return 0;
}
Result cuDevicePrimaryCtxRetain(Handle* handle, int) { return *handle = &context, 0; }
Result cuCtxGetCurrent(Handle* handle) { return *handle = nullptr, 0; }
Result cuCtxSetCurrent(Handle handle) { return handle == &context ? 0 : kWrong; }
Result cuModuleLoadData(Handle* module, const void* image) {
  *module = dlopen(static_cast<const char*>(image), RTLD_NOW | RTLD_LOCAL);
  if (!*module) error = dlerror();
  return *module ? 0 : kWrong;
}
Result cuModuleGetFunction(Handle* function, Handle module, const char* name) {
  *function = dlsym(module, std::strcmp(name, "prnn_probe") ? "prnn_emulate" : name);
  return *function ? 0 : kWrong;
}
Result cuFuncGetAttribute(int* value, int attribute, Handle) { return *value = attribute == kRegisters ? 255 : 0, 0; }
Result cuFuncSetAttribute(Handle, int attribute, int value) {
  return (attribute == kMostDynamicSharedBytes ? value == kSharedBytes : value == 1) ? 0 : kWrong;
}
Result cuOccupancyMaxActiveClusters(int* clusters, Handle, const LaunchConfig* config) {
  const unsigned size = config->attributes[0].value.cluster.x;
  *clusters = size == 2 ? 5 : size == 4 ? 3 : size == 8 ? 2 : 1;
  return config->shared_bytes == kSharedBytes ? 0 : kWrong;
}
Result cuMemHostAlloc(void** memory, size_t bytes, unsigned) { return *memory = std::calloc(bytes, 1), 0; }
Result cuMemsetD2D32Async(void* to, size_t pitch, unsigned value, size_t width, size_t height, Handle) {
  if (pitch < width * 4) return kWrong;
  // What is not cleared is from another use of the memory: ones, a word as good as any.
  for (size_t row = 0; row < height; ++row)
    for (size_t i = 0; i < pitch / 4; ++i)
      static_cast<uint32_t*>(to)[row * pitch / 4 + i] = i < width ? value : 0x3F803F80u;
  return 0;
}
Result cuThreadExchangeStreamCaptureMode(int*) { return 0; }
Result cuLaunchKernelEx(const LaunchConfig* config, Handle function, void** arguments, void**) {
  static LaunchAttribute attribute;
  last = *config, ++launches;
  if (config->attribute_count) attribute = config->attributes[0], last.attributes = &attribute;
  const bool cluster = config->attribute_count && attribute.id == LaunchAttribute::kClusterDimension;
  const bool together = config->attribute_count && attribute.id == LaunchAttribute::kCooperative;
  const unsigned size = cluster ? attribute.value.cluster.x : 1;
  if (config->grid_x % size || config->shared_bytes > kSharedBytes || config->grid_z != 1 ||
      (together && config->grid_x * config->grid_y > unsigned(kCount)))
    return error = "the emulated GPU does not take this launch", kWrong;
  const char* failure =
      reinterpret_cast<Emulate>(function)(int(config->grid_x), int(config->grid_y), int(config->block_x), int(size),
                                          int(config->shared_bytes), ++seed, arguments);
  if (failure) error = failure;
  return failure ? kWrong : 0;
}

}  // extern "C"
