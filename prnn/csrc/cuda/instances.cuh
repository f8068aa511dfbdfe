// The kernels of one cell, for all element types and shapes, and their table.
#pragma once

#include "backward.cuh"
#include "forward.cuh"
#include "kernels.h"

namespace prnn::cuda {

template <class C, class E, Scheme kScheme, int kShape>
PRNN_KERNEL(kThreads)
recurrence_forward(PRNN_OPERAND Plan plan, PRNN_OPERAND WaitLimit limit, PRNN_OPERAND Directions<Forward> passes,
                   void* workspace) {
  const int team = plan.team(block());
  ForwardPass<C, E, kScheme, kShape>(plan, team, 0, limit, passes.of[team & (plan.directions - 1)], workspace).run();
}
template <class C, class E, Scheme kScheme, int kShape>
PRNN_KERNEL(kThreads)
recurrence_backward(PRNN_OPERAND Plan plan, PRNN_OPERAND WaitLimit limit,
                    PRNN_OPERAND Directions<SerialBackward> passes, void* workspace) {
  const int team = plan.team(block());
  BackwardPass<C, E, kScheme, kShape>(plan, team, 0, limit, passes.of[team & (plan.directions - 1)], workspace).run();
}

template <class C, class E, Regime kRegime>
KernelsOfShapes kernels_of_regime() {
  constexpr Scheme kForward = scheme_of(kRegime, false, C::kGates, sizeof(E) == 4);
  constexpr Scheme kBackward = scheme_of(kRegime, true, C::kGates, sizeof(E) == 4);
  return {{recurrence_forward<C, E, kForward, 0>, recurrence_forward<C, E, kForward, 1>,
           recurrence_forward<C, E, kForward, 2>},
          {recurrence_backward<C, E, kBackward, 0>, recurrence_backward<C, E, kBackward, 1>,
           recurrence_backward<C, E, kBackward, 2>}};
}
template <class C, class E>
Kernels kernels_of() {
  return {kernels_of_regime<C, E, Regime::block>(), kernels_of_regime<C, E, Regime::cluster>(),
          kernels_of_regime<C, E, Regime::grid>()};
}

template <class Exact, class Quick>
Kernels kernels_of(Dtype dtype) {
  return dtype == Dtype::float32    ? kernels_of<Exact, float>()
         : dtype == Dtype::bfloat16 ? kernels_of<Quick, Bfloat16>()
                                    : kernels_of<Quick, Float16>();
}

}  // namespace prnn::cuda

// The whole content of a kernels_NAME.cu: the definitions of a row of kernels.h.
#define PRNN_KERNELS_OF(Struct, name)                                                             \
  namespace prnn::cuda {                                                                          \
  Kernels name##_kernels(Dtype dtype) { return kernels_of<exact::Struct, quick::Struct>(dtype); } \
  }
