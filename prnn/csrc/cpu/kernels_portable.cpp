// The kernels for any processor.
#include "kernels.h"

#include "isa_portable.h"

#include "instances.h"

namespace prnn::cpu {
const Kernels& portable_kernels() { return portable::kKernels; }
}  // namespace prnn::cpu
