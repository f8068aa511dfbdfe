// Scratch memory, cached between calls: freed, it would be returned to the system, and the page faults of allocating it
// again take up to a tenth of a pass.
#pragma once

#include <cstdint>

namespace prnn::cpu {

struct Block {
  char* memory;
  int64_t bytes;
};

// At least the requested bytes, 64-byte aligned, uninitialised.
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(int64_t bytes);
  Scratch(Scratch&& other) noexcept;
  Scratch& operator=(Scratch&& other) noexcept;
  ~Scratch();
  char* get() const { return block_.memory; }

 private:
  Block block_{nullptr, 0};
};

}  // namespace prnn::cpu
