// The kernels of one instruction set: the interface for the driver.
#pragma once

#include "../stack_memory.h"
#include "parts.h"
#include "plan.h"
#include "team.h"
#include "user_cell.h"

namespace prnn::cpu {

struct Kernels {
  const char* isa;
  int64_t lanes;  // floats in a vector
  // Bytes of the team's shared scratch memory, 64-byte aligned.
  int64_t (*forward_scratch)(const Forward& pass, const Plan& plan, int64_t members);
  int64_t (*backward_scratch)(const BackwardPart& part, const Plan& plan, int64_t members);
  // One member's part of the pass; every member of the team calls it once.
  void (*forward)(const Forward& pass, const Plan& plan, char* scratch, Member& member);
  void (*backward)(const BackwardPart& part, const Plan& plan, char* scratch, Member& member);
  // Samples [b0, b1) of stacks or lists; null in a table for bfloat16 alone. Without scratch memory they only return
  // the bytes they need.
  int64_t (*memory_forward)(const MemoryForward& pass, int64_t b0, int64_t b1, char* scratch);
  int64_t (*memory_backward)(const MemoryBackward& pass, int64_t b0, int64_t b1, char* scratch);
};

const Kernels& portable_kernels();  // vectors of four: SSE2 on x86-64, NEON on ARM
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& avx512_bf16_kernels();  // for bfloat16 alone
#endif

const Kernels& best_kernels(Dtype dtype);

}  // namespace prnn::cpu
