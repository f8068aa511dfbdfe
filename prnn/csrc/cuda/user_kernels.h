// Kernels of cells written in Python, which are compiled on the user's machine (prnn/codegen/gpu.py) and launched
// through the driver. Includes neither torch nor CUDA headers.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "passes.h"
#include "planner.h"

namespace prnn::cuda {

// The numbers of these cells are beyond those of the table's, and have nothing to do with those of CPU kernels.
struct UserCudaCell {
  std::string name;
  CellRow row;      // row.name points to `name`, as model.name does
  CellModel model;  // with estimates of the resident fragments
};

// Defines a cell; its number.
int64_t define_user_cell(const std::string& name, const CellRow& row);
bool is_user_cell(int64_t number);
// Throws for a number that is none.
const UserCudaCell& user_cuda_cell(int64_t number);

// Which of a cell's kernels, on which device.
struct KernelKey {
  int64_t cell;
  int device;
  Dtype dtype;
  Scheme scheme;
  bool backward;
  int shape;

  friend bool operator<(const KernelKey& a, const KernelKey& b);
};
// Loads a compiled kernel that has so many resident fragments, once.
void load_kernel(const KernelKey& key, int resident, const void* image);

// A kernel that a plan needs has not been loaded: "prnn: kernel not loaded: SCHEME BACKWARD SHAPE".
// prnn/cuda_plan.py reads it, and compiles the kernel.
struct KernelNotLoaded : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// As make_plan, with the resident fragments of the kernels as they are compiled: it depends on nothing that other plans
// have loaded. Throws KernelNotLoaded.
std::optional<Plan> make_user_plan(int64_t cell, const Recurrence& of, int directions, const Device& limits,
                                   const PlanFilter& filter, int device);

// As forward and backward of recurrence.h. Throw KernelNotLoaded.
void run_user(int64_t cell, const Forward* passes, int count, const Plan& plan, int device, void* workspace,
              void* stream);
void run_user(int64_t cell, const SerialBackward* passes, int count, const Plan& plan, int device, void* workspace,
              void* stream);
std::string describe_user(int64_t cell, const Plan& plan, const Recurrence& of, int device);

// The properties of a device, by the driver. Once `probe` has been given, a compiled kernel without arguments, of
// kThreads threads.
const Device& device_limits_of_driver(int device, const void* probe = nullptr);
int architecture(int device);  // 90 for sm_90

}  // namespace prnn::cuda
