// A plan as text: parsing of the environment variables, and output as JSON. Includes neither torch nor CUDA headers.
#pragma once

#include <optional>
#include <string>

#include "planner.h"

namespace prnn::cuda {

// For tests and measurements. regime: "block", "cluster" or "grid"; plan: numbers of PlanFilter by name, as in
// "shape=2,row_warps=1,blocks=16"; either may be null or empty. Throws std::runtime_error with a message that names
// the variable, PRNN_CUDA_REGIME or PRNN_CUDA_PLAN.
PlanFilter plan_filter(const char* regime, const char* plan);

// {"multiprocessors", "shared_memory", "clusters": [4], "clock_ghz"}, as in Device.
std::string json_of(const Device& device);
// Plan's fields by name, the regime in a word; "null" where there is none.
std::string json_of(const std::optional<Plan>& plan);

}  // namespace prnn::cuda
