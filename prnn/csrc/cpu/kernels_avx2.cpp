// The kernels for AVX2.
#include "kernels.h"

#if defined(__x86_64__)
#include "isa_avx2.h"

PRNN_ISA_BEGIN
#include "instances.h"

namespace prnn::cpu {
const Kernels& avx2_kernels() { return avx2::kKernels; }
}  // namespace prnn::cpu
PRNN_ISA_END
#endif
