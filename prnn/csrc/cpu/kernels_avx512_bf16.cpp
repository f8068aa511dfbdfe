// The kernels for AVX512-BF16. The target is set after the standard headers and before all code of ours.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,avx512bf16"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,avx512bf16")
#endif
#define PRNN_ISA avx512_bf16
#define PRNN_ISA_NAME "avx512_bf16"
#define PRNN_LANES 16
#define PRNN_BF16_PAIRS
#include "instances.h"

namespace prnn::cpu {
const Kernels& avx512_bf16_kernels() { return avx512_bf16::kKernels; }
}  // namespace prnn::cpu
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
