// A recurrence on the GPU: the interface for the binding. Includes neither torch nor CUDA headers.
#pragma once

#include <optional>
#include <string>

#include "../layer_args.h"
#include "plan.h"

namespace prnn::cuda {

// A backward pass of the recurrence only, before the matmuls: grad_x is the gradient of gates_x.
struct SerialBackward : Backward {
  void* grad_gates_h;  // [T,B,G*H], strides as grad_x's, where the cell does not simply add the two; or null
};

// The limits of the current device, whose index is `device`, queried once. Throws std::runtime_error with CUDA's
// message.
const Device& device_limits(int device);

// Run `count` passes of one shape (the directions of a layer) on the current device: by `plan`, which was made for
// count or for one direction, in `workspace` (workspace_bytes of it). weight_ih is null: x is gates_x. Asynchronous;
// throws std::runtime_error, with the shape, if a launch fails.
void forward(const Forward* passes, int count, const Plan& plan, void* workspace, void* stream);
void backward(const SerialBackward* passes, int count, const Plan& plan, void* workspace, void* stream);

// A plan in words: regime, blocks, registers and shared memory of its kernel.
std::string describe(const Plan& plan, Cell cell, Dtype dtype, bool backward);

}  // namespace prnn::cuda
