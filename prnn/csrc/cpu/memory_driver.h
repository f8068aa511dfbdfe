// Networks with soft stacks or lists on the CPU.
#pragma once

#include "../stack_memory.h"
#include "driver.h"

namespace prnn::cpu {

// All samples, some at a time, on as many threads as `parallel` has. The bits do not depend on their number.
void memory_forward(const MemoryForward& pass, const Parallel& parallel);
void memory_backward(const MemoryBackward& pass, const Parallel& parallel);

// The smallest [first, last) with the head's place in it, outside of which all of memory0 is `empty`.
void find_filled(Memory& memory);

}  // namespace prnn::cpu
