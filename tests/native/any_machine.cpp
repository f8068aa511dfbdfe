// Kernels of PRNN_LANES lanes with pairs of bfloat16, for no instruction set in particular, in place of dispatch.cpp:
// the logic of the wide builds on any machine, and one kernel file instead of four where a sanitizer makes them slow.
#include "kernels.h"

#define PRNN_ISA any_machine
#define PRNN_ISA_NAME "any_machine"
#define PRNN_BF16_PAIRS
#include "instances.h"

namespace prnn::cpu {
const Kernels& best_kernels(Dtype) { return any_machine::kKernels; }
}  // namespace prnn::cpu
