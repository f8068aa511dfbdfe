// The bfloat16 kernels for AVX512-BF16; those of other dtypes are AVX-512's.
#include "kernels.h"

#if defined(__x86_64__)
#include "isa_avx512_bf16.h"

PRNN_ISA_BEGIN
#include "instances.h"

namespace prnn::cpu {
const Kernels& avx512_bf16_kernels() { return avx512_bf16::kKernels; }
}  // namespace prnn::cpu
PRNN_ISA_END
#endif
