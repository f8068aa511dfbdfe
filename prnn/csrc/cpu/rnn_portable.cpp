// The kernels for any processor: vectors of four floats, SSE2 on x86-64, NEON on ARM.
#define PRNN_ISA portable
#define PRNN_ISA_NAME "portable"
#define PRNN_LANES 4
#include "rnn_kernel.h"

namespace prnn::cpu {
const RnnKernels& portable_kernels() { return portable::kKernels; }
}  // namespace prnn::cpu
