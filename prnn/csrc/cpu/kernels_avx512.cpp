// The kernels for AVX-512.
#include "kernels.h"

#if defined(__x86_64__)
#include "isa_avx512.h"

PRNN_ISA_BEGIN
#include "instances.h"

namespace prnn::cpu {
const Kernels& avx512_kernels() { return avx512::kKernels; }
}  // namespace prnn::cpu
PRNN_ISA_END
#endif
