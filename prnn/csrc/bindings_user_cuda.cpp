// Cells written in Python on a GPU, in torch.ops.prnn_native: what prnn/codegen/gpu.py needs to compile their kernels,
// and the kernels it has compiled. bindings_cuda.cpp runs them.
#include "bindings_cuda.h"
#include "cuda/user_kernels.h"
#include "cuda/wait.h"

#ifndef PRNN_CUDA_HEADERS
#define PRNN_CUDA_HEADERS "unknown"
#endif

namespace {

using namespace prnn;

// gates, saved, states, params, inputs, output, splits_gates: those of CellRow.
CellRow row_of(const std::vector<int64_t>& sizes) {
  STD_TORCH_CHECK(sizes.size() == 7, "prnn_native: a cell has seven sizes");
  return {"", sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6] != 0, false};
}

int64_t define_cell(std::string name, const std::vector<int64_t> sizes) {
  return cuda::define_user_cell(name, row_of(sizes));
}

// The first estimate of a kernel's resident fragments.
int64_t resident(const std::vector<int64_t> sizes, bool float32, int64_t scheme, bool backward, int64_t shape) {
  STD_TORCH_CHECK(scheme >= 0 && scheme < cuda::kSchemes && shape >= 0 && shape < cuda::kShapes,
                  "prnn_native: there is no such kernel");
  return cuda::model_of_user_cell(row_of(sizes)).resident[scheme][float32][backward][shape];
}

void load_kernel(int64_t cell, int64_t device, int64_t dtype, int64_t scheme, bool backward, int64_t shape,
                 int64_t resident, const Tensor image) {
  const OnDevice on(device);
  cuda::load_kernel({cell, on.device, static_cast<Dtype>(dtype), static_cast<cuda::Scheme>(scheme), backward,
                     static_cast<int>(shape)},
                    static_cast<int>(resident), data(image));
}

// The architecture of a device, as in sm_90; with a compiled probe, its limits are asked for.
int64_t architecture(int64_t device, const Optional probe) {
  const OnDevice on(device);
  if (probe) cuda::device_limits_of_driver(on.device, data(*probe));
  return cuda::architecture(on.device);
}

// The hash of the kernels' headers (prnn/codegen/headers.py), and the sizes of a kernel's arguments, which the compiler
// of a cell must find, too.
std::string layout() {
  std::string text = PRNN_CUDA_HEADERS;
  for (const size_t size : {sizeof(cuda::Plan), sizeof(cuda::WaitLimit), sizeof(cuda::Directions<Forward>),
                            sizeof(cuda::Directions<cuda::SerialBackward>)})
    text += " " + std::to_string(size);
  return text;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(prnn_native, library) {
  library.def("cuda_define_cell(str name, int[] sizes) -> int");
  library.def("cuda_resident(int[] sizes, bool float32, int scheme, bool backward, int shape) -> int");
  library.def(
      "cuda_load_kernel(int cell, int device, int dtype, int scheme, bool backward, int shape, int resident, "
      "Tensor image) -> ()");
  library.def("cuda_architecture(int device, Tensor? probe=None) -> int");
  library.def("cuda_layout() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(prnn_native, CompositeExplicitAutograd, library) {
  library.impl("cuda_define_cell", TORCH_BOX(&define_cell));
  library.impl("cuda_resident", TORCH_BOX(&resident));
  library.impl("cuda_load_kernel", TORCH_BOX(&load_kernel));
  library.impl("cuda_architecture", TORCH_BOX(&architecture));
  library.impl("cuda_layout", TORCH_BOX(&layout));
}
