// The kernels for AVX-512.
#include "kernels.h"

#if defined(__x86_64__)
#include "target.h"

#define PRNN_ISA avx512
#define PRNN_ISA_NAME "avx512"
#define PRNN_LANES 16
#define PRNN_AVX 512

PRNN_TARGET_BEGIN("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
#include "instances.h"

namespace prnn::cpu {
const Kernels& avx512_kernels() { return avx512::kKernels; }
}  // namespace prnn::cpu
PRNN_TARGET_END
#endif
