// Beside the kernel of a cell, in its shared object: the kernel run on the emulated GPU, for libcuda.cpp.
#pragma once

#include <string>
#include <utility>

#include "emulation.h"

namespace emulation {

template <class... Arguments, size_t... kIndex>
void call(void (*kernel)(Arguments...), void** arguments, std::index_sequence<kIndex...>) {
  kernel(*static_cast<std::remove_const_t<Arguments>*>(arguments[kIndex])...);
}

template <class... Arguments>
const char* run(void (*kernel)(Arguments...), const Launch& launch, void** arguments) {
  static std::string error;
  error = emulation::launch(launch, [&] { call(kernel, arguments, std::index_sequence_for<Arguments...>()); });
  return error.empty() ? nullptr : error.c_str();
}

}  // namespace emulation

extern "C" const char* prnn_emulate(int blocks, int rows, int threads, int cluster, int shared_bytes, uint64_t seed,
                                    void** arguments) {
  return emulation::run(prnn::cuda::prnn_user_kernel, {blocks, threads, cluster, shared_bytes, seed, rows}, arguments);
}
