// The kernels by cell and element type: the interface between the launcher and the files that compile them.
#pragma once

#include "passes.h"
#include "planner.h"
#include "wait.h"

namespace prnn::cuda {

using ForwardKernel = void (*)(Plan, WaitLimit, Directions<Forward>, void* workspace);
using BackwardKernel = void (*)(Plan, WaitLimit, Directions<SerialBackward>, void* workspace);

struct KernelsOfShapes {
  ForwardKernel forward[kShapes];
  BackwardKernel backward[kShapes];
};
struct Kernels {
  KernelsOfShapes block, cluster, grid;  // of a regime: regimes may have kernels in common

  const KernelsOfShapes& of(Regime regime) const {
    return regime == Regime::block ? block : regime == Regime::cluster ? cluster : grid;
  }
};

#define PRNN_DECLARE(Struct, name) Kernels name##_kernels(Dtype dtype);
PRNN_CUDA_CELLS(PRNN_DECLARE)
#undef PRNN_DECLARE

inline Kernels kernels_of(Cell cell, Dtype dtype) {
  switch (cell) {
#define PRNN_KERNELS(Struct, name) \
  case Cell::name:                 \
    return name##_kernels(dtype);
    PRNN_CUDA_CELLS(PRNN_KERNELS)
#undef PRNN_KERNELS
    default:
      no_kernels(cell);
  }
}

}  // namespace prnn::cuda
