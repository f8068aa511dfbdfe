#include "driver.h"

#include <dlfcn.h>

#include <stdexcept>

#include "timeouts.h"

namespace prnn::cuda::driver {

namespace {

Api load() {
  void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) throw std::runtime_error("prnn: there is no CUDA driver (libcuda.so.1)");
  Api api{};
  const auto find = [&](const char* name) {
    void* const symbol = dlsym(library, name);
    if (!symbol) throw std::runtime_error(std::string("prnn: the CUDA driver is too old: it has no ") + name);
    return symbol;
  };
#define PRNN_FIND(name, arguments) api.name = reinterpret_cast<decltype(api.name)>(find(#name));
  PRNN_DRIVER(PRNN_FIND)
#undef PRNN_FIND
  api.emulated = dlsym(library, "prnn_emulated") != nullptr;
  return api;
}

}  // namespace

const Api& api() {
  static const Api loaded = load();
  return loaded;
}

bool emulated() {
  try {
    return api().emulated;
  } catch (const std::exception&) {
    return false;
  }
}

void check(Result result, const std::string& what) {
  if (result == 0) return;
  if (const std::string cause = fault(); !cause.empty()) throw std::runtime_error(cause);
  const char* text = nullptr;
  api().cuGetErrorString(result, &text);
  throw std::runtime_error(what + ": " + (text ? text : "error " + std::to_string(result)));
}

}  // namespace prnn::cuda::driver
