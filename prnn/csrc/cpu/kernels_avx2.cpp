// The kernels for AVX2.
#include "kernels.h"

#if defined(__x86_64__)
#include "target.h"

#define PRNN_ISA avx2
#define PRNN_ISA_NAME "avx2"
#define PRNN_LANES 8
#define PRNN_AVX 2

PRNN_TARGET_BEGIN("avx2,fma")
#include "instances.h"

namespace prnn::cpu {
const Kernels& avx2_kernels() { return avx2::kKernels; }
}  // namespace prnn::cpu
PRNN_TARGET_END
#endif
