// Networks with differentiable stacks or lists on the CPU.
#pragma once

#include "../stack_memory.h"
#include "driver.h"

namespace prnn::cpu {

// All samples, in groups, on the threads of `parallel`. The results are bitwise independent of their number.
void memory_forward(const MemoryForward& pass, const Parallel& parallel);
void memory_backward(const MemoryBackward& pass, const Parallel& parallel);

// The smallest [first, last) that contains the head and all cells of memory0 that are not `empty`.
void find_filled(Memory& memory);

}  // namespace prnn::cpu
