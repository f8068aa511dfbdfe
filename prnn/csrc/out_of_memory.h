// The out-of-memory error, one sentence with the size; prnn/training/mistakes.py matches its text.
#pragma once

#include <cstdio>
#include <stdexcept>

namespace prnn {

// `bytes` is a double: the product of sizes that overflow 64 bits is still the size of the allocation.
[[noreturn]] inline void out_of_memory(double bytes) {
  char text[128];
  std::snprintf(text, sizeof(text), "prnn: not enough memory: you tried to allocate %.0f bytes (%.1f MiB)", bytes,
                bytes / (1 << 20));
  throw std::runtime_error(text);
}

}  // namespace prnn
