// The bfloat16 kernels for AVX512-BF16; those of other dtypes are AVX-512's.
#include "kernels.h"

#if defined(__x86_64__)
#include "target.h"

#define PRNN_ISA avx512_bf16
#define PRNN_ISA_NAME "avx512_bf16"
#define PRNN_LANES 16
#define PRNN_AVX 512
#define PRNN_BF16_PAIRS
#define PRNN_AVX512_BF16

PRNN_TARGET_BEGIN("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,avx512bf16")
#include "instances.h"

namespace prnn::cpu {
const Kernels& avx512_bf16_kernels() { return avx512_bf16::kKernels; }
}  // namespace prnn::cpu
PRNN_TARGET_END
#endif
