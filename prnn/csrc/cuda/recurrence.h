// A recurrence on the GPU: the interface for the binding. Includes neither torch nor CUDA headers.
#pragma once

#include <string>

#include "passes.h"
#include "planner.h"

namespace prnn::cuda {

// The limits of the current device, whose index is `device`, queried once. Throws std::runtime_error with CUDA's
// message.
const Device& device_limits(int device);

// Run `count` passes of one shape (the directions of a layer) on the current device: by `plan`, which was made for
// count or for one direction, in `workspace` (workspace_bytes of it). weight_ih is null: x is gates_x. Asynchronous;
// throws std::runtime_error, with the shape, if a launch fails.
void forward(const Forward* passes, int count, const Plan& plan, void* workspace, void* stream);
void backward(const SerialBackward* passes, int count, const Plan& plan, void* workspace, void* stream);

// The steps of a kernel's sequences are int there: throws std::runtime_error for those that are not.
void check_steps(const Forward& pass);
void check_steps(const SerialBackward& pass);

// A plan in words: regime, blocks, registers and shared memory of its kernel.
std::string describe(const Plan& plan, Cell cell, Dtype dtype, bool backward);
std::string describe(const Plan& plan, const SharedMemory& shared, int registers);

}  // namespace prnn::cuda
