// Dispatch to an instruction set.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace prnn::cpu {

static const Kernels& choose([[maybe_unused]] Dtype dtype) {
  // PRNN_CPU_ISA is the widest set to use; Python rejects unknown names.
#if defined(__x86_64__)
  constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512_bf16"};
  const char* requested = std::getenv("PRNN_CPU_ISA");
  int widest = 3;
  for (int i = 0; requested && i < 4; ++i)
    if (!std::strcmp(requested, kNames[i])) widest = i;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  if (widest >= 3 && dtype == Dtype::bfloat16 && avx512 && __builtin_cpu_supports("avx512bf16"))
    return avx512_bf16_kernels();
  if (widest >= 2 && avx512) return avx512_kernels();
  if (widest >= 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2_kernels();
#endif
  return portable_kernels();
}

const Kernels& best_kernels(Dtype dtype) {
  static const Kernels &float32 = choose(Dtype::float32), &bfloat16 = choose(Dtype::bfloat16);
  return dtype == Dtype::bfloat16 ? bfloat16 : float32;
}

}  // namespace prnn::cpu
