// Kernels of cells written in Python, which are compiled on the user's machine (prnn/codegen/gpu.py) and launched
// through the driver. Includes neither torch nor CUDA headers.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "passes.h"
#include "planner.h"

namespace prnn::cuda {

// A cell's numbers are beyond those of the table's cells, and of a GPU alone.
struct UserCellOnGpu {
  std::string name;
  CellRow row;
  CellModel model;
};

// Defines a cell; its number. `resident` as for model_of_user_cell.
int64_t define_user_cell(const std::string& name, const CellRow& row, const std::vector<int64_t>& resident);
// Where compiling has shown another number of resident fragments to be right.
void set_resident(int64_t number, Scheme scheme, bool backward, int shape, int resident);
bool is_user_cell(int64_t number);
// Throws for a number that is none.
const UserCellOnGpu& user_cell_on_gpu(int64_t number);

// Which of a cell's kernels: a cell has an element type.
struct KernelName {
  int64_t cell;
  int device;
  Scheme scheme;
  bool backward;
  int shape;

  friend bool operator<(const KernelName& a, const KernelName& b);
};
// Loads a compiled kernel into the current process, once.
void load_kernel(const KernelName& name, const void* image);

// As forward and backward of recurrence.h. Where a kernel has not been loaded, they throw Wanted.
void run_user(int64_t cell, const Forward* passes, int count, const Plan& plan, int device, void* workspace,
              void* stream);
void run_user(int64_t cell, const SerialBackward* passes, int count, const Plan& plan, int device, void* workspace,
              void* stream);
std::string describe_user(int64_t cell, const Plan& plan, const Recurrence& of, int device);

// The properties of a device, once known; before `probe` has been given, a compiled kernel without arguments, of
// kThreads threads, it throws Wanted.
const Device& device_limits_of_driver(int device, const void* probe = nullptr);
int architecture(int device);  // 90 for sm_90

// What is to be compiled and loaded, for prnn/ops/cuda.py: "prnn wants kernel SCHEME BACKWARD SHAPE", "prnn wants
// probe".
struct Wanted : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace prnn::cuda
