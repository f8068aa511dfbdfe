// The kernels by cell and element: what the launcher and the files that compile them agree on.
#pragma once

#include "layer.h"
#include "plan.h"
#include "wait.h"

namespace prnn::cuda {

// The passes of the two directions of a layer, of one shape; or one.
template <class Pass>
struct Directions {
  Pass of[2];
};

using ForwardKernel = void (*)(Plan, Patience, Directions<Forward>, void* workspace);
using BackwardKernel = void (*)(Plan, Patience, Directions<SerialBackward>, void* workspace);

struct Kernels {
  ForwardKernel forward[kShapes];
  BackwardKernel backward[kShapes];
};

Kernels rnn_relu_kernels(Dtype dtype);
Kernels rnn_tanh_kernels(Dtype dtype);
Kernels gru_kernels(Dtype dtype);
Kernels lstm_kernels(Dtype dtype);

inline Kernels kernels_of(Cell cell, Dtype dtype) {
  return cell == Cell::rnn_relu   ? rnn_relu_kernels(dtype)
         : cell == Cell::rnn_tanh ? rnn_tanh_kernels(dtype)
         : cell == Cell::gru      ? gru_kernels(dtype)
                                  : lstm_kernels(dtype);
}

}  // namespace prnn::cuda
