// The kernels for any processor: vectors of four floats, SSE2 on x86-64, NEON on 64-bit ARM.
#include "kernels.h"

#define PRNN_ISA portable
#if defined(__aarch64__)
#define PRNN_ISA_NAME "neon"
#else
#define PRNN_ISA_NAME "portable"
#endif
#define PRNN_LANES 4
#include "instances.h"

namespace prnn::cpu {
const Kernels& portable_kernels() { return portable::kKernels; }
}  // namespace prnn::cpu
