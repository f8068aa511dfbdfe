// The kernels for AVX-512. The target is set after the standard headers and before all code of ours.
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx2,fma")
#endif
#define PRNN_ISA avx512
#define PRNN_ISA_NAME "avx512"
#define PRNN_LANES 16
#include "rnn_kernel.h"

namespace prnn::cpu {
const RnnKernels& avx512_kernels() { return avx512::kKernels; }
}  // namespace prnn::cpu
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
