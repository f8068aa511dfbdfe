// Memory that is kept between calls: freed, it would be returned to the system, and the page faults of allocating it
// again take a tenth of a pass for scratch memory and up to a third for what the forward pass saves.
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

// Memory for a large result, uninitialised; give_back_result() takes it when the result is freed, on any thread. Where
// the system has MADV_FREE, it may take back what is kept when memory runs short.
Block take_result(int64_t bytes);
void give_back_result(Block block);

// Requests huge pages for a large result about to be written: without them a third of an LSTM's forward pass over
// T 784, B 32, H 100 is spent on page faults of `saved`. Does not affect results; no-op where unsupported.
void advise_huge_pages(void* memory, int64_t bytes);

}  // namespace prnn::cpu
