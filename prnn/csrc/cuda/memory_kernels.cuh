// The kernels of networks with differentiable stacks or lists.
#pragma once

#include "memory_backward.cuh"
#include "memory_forward.cuh"

namespace prnn::cuda {

template <class E>
PRNN_KERNEL(32 * kMemoryWarps)
memory_forward_kernel(PRNN_OPERAND MemoryPlan plan, PRNN_OPERAND MemoryForward pass) {
  MemoryForwardPass<E>(plan, pass).run();
}
template <class E>
PRNN_KERNEL(32 * kMemoryWarps)
memory_backward_kernel(PRNN_OPERAND MemoryPlan plan, PRNN_OPERAND MemoryBackward pass) {
  MemoryBackwardPass<E>(plan, pass).run();
}

}  // namespace prnn::cuda
