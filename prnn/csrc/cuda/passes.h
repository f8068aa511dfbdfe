// The passes of a kernel: the arguments of its launch.
#pragma once

#include "../layer_args.h"

namespace prnn::cuda {

// A backward pass of the recurrence only, before the matmuls: grad_x is the gradient of gates_x.
struct SerialBackward : Backward {
  void* grad_gates_h;             // [T,B,G*H], strides as grad_x's, where the cell does not simply add the two; or null
  float* grad_params_of_samples;  // [B,params,H]: a sum over the samples, in any fixed order, is the gradient; or null
};

// The passes of the two directions of a layer, of one shape; or one.
template <class Pass>
struct Directions {
  Pass of[2];
  int first_head;
};

}  // namespace prnn::cuda
