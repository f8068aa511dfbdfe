// The kernels for AVX-512. The target is set after the standard headers and before all code of ours.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
#endif
#define PRNN_ISA avx512
#define PRNN_ISA_NAME "avx512"
#define PRNN_LANES 16
#include "instances.h"

namespace prnn::cpu {
const Kernels& avx512_kernels() { return avx512::kKernels; }
}  // namespace prnn::cpu
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
