// Timeouts of waits in kernels, on the host. Includes neither torch nor CUDA headers.
#pragma once

#include <atomic>
#include <string>

#include "wait.h"

namespace prnn::cuda {

// From PRNN_CUDA_WAIT_SECONDS, by default 2. Throws std::runtime_error for an invalid value.
WaitLimit wait_limit(const char* cell, const Layer& layer, const Plan& plan, bool backward);

// "lstm bfloat16 T=1024 B=16 H=768, forward, grid regime, 96 blocks"
std::string describe(const Launched& launch);

// This process's record, allocated at its first launch, once for all devices, which map it at the host's address, and
// never freed, so that it can be read after a context is lost. `allocate`: host memory of so many bytes, mapped.
Fault* record_for_kernels(void* (*allocate)(size_t bytes));

// This process's record, null before its first launch; and its content as a message for the user, "" without a fault.
extern std::atomic<Fault*> record;
std::string fault();

}  // namespace prnn::cuda
