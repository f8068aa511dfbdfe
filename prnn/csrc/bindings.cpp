// torch.ops.prnn_native: the only C++ file that knows torch, and of torch only its stable ABI.
//
// The operators write into tensors the caller allocated, contiguous, on the CPU; Python (prnn/ops/native.py) sees
// to that and to autograd.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "cpu/rnn.h"

namespace {

using prnn::cpu::RnnBackward;
using prnn::cpu::RnnForward;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

template <class T>
const T* data(const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_contiguous(), "prnn_native takes contiguous tensors");
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
const T* data(const Optional& tensor) {
  return tensor ? data<T>(*tensor) : nullptr;
}

float* output(Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_contiguous(), "prnn_native takes contiguous tensors");
  return static_cast<float*>(tensor.mutable_data_ptr());
}

void check_shapes(const Tensor& sequence, const Tensor& weight_hh) {
  STD_TORCH_CHECK(sequence.dim() == 3 && weight_hh.dim() == 2 && weight_hh.size(0) == sequence.size(2) &&
                      weight_hh.size(1) == sequence.size(2),
                  "prnn_native.rnn takes a sequence [T,B,H] and weight_hh [H,H]");
}

// Samples a thread must have for waking it to pay: about 2^18 multiplications, some 10 microseconds.
int64_t grain(int64_t T, int64_t H) {
  return std::max<int64_t>(1, (int64_t{1} << 18) / std::max<int64_t>(1, T * H * H));
}

// weight_hh [H,H] in the kernels' panels, 64-byte aligned within its buffer.
class Packed {
 public:
  Packed(const prnn::cpu::RnnKernels& kernels, const Tensor& weight_hh, bool transpose)
      : buffer_(static_cast<size_t>(kernels.packed_size(weight_hh.size(0))) + 16) {
    const auto address = reinterpret_cast<uintptr_t>(buffer_.data());
    data_ = buffer_.data() + ((64 - address % 64) % 64) / sizeof(float);
    kernels.pack(data<float>(weight_hh), weight_hh.size(0), transpose, data_);
  }
  const float* get() const { return data_; }

 private:
  std::vector<float> buffer_;
  float* data_;
};

void rnn_forward(const Tensor gates_x, const Tensor weight_hh, const Optional bias_hh, const Tensor h0,
                 const Optional lengths, const Optional resets, bool relu, Tensor out, Tensor h_n) {
  check_shapes(gates_x, weight_hh);
  const auto& kernels = prnn::cpu::best_kernels();
  const Packed packed(kernels, weight_hh, false);
  const std::vector<float> zeros(static_cast<size_t>(gates_x.size(2)));
  RnnForward pass{};
  pass.T = gates_x.size(0), pass.B = gates_x.size(1), pass.H = gates_x.size(2);
  pass.relu = relu;
  pass.gates_x = data<float>(gates_x);
  pass.packed = packed.get();
  pass.bias = data<float>(bias_hh);
  pass.h0 = data<float>(h0);
  pass.lengths = data<int64_t>(lengths);
  pass.resets = data<bool>(resets);
  pass.zeros = zeros.data();
  pass.output = output(out);
  pass.h_n = output(h_n);
  torch::stable::parallel_for(0, pass.B, grain(pass.T, pass.H),
                              [&](int64_t begin, int64_t end) { kernels.forward(pass, begin, end); });
}

void rnn_backward(const Optional grad_output, const Optional grad_h_n, const Tensor weight_hh, const Optional lengths,
                  const Optional resets, const Tensor out, bool relu, Tensor grad_gates, Tensor grad_h0) {
  check_shapes(out, weight_hh);
  const auto& kernels = prnn::cpu::best_kernels();
  const Packed packed(kernels, weight_hh, true);
  RnnBackward pass{};
  pass.T = out.size(0), pass.B = out.size(1), pass.H = out.size(2);
  pass.relu = relu;
  pass.grad_output = data<float>(grad_output);
  pass.grad_h_n = data<float>(grad_h_n);
  pass.packed = packed.get();
  pass.lengths = data<int64_t>(lengths);
  pass.resets = data<bool>(resets);
  pass.output = data<float>(out);
  pass.grad_gates = output(grad_gates);
  pass.grad_h0 = output(grad_h0);
  torch::stable::parallel_for(0, pass.B, grain(pass.T, pass.H),
                              [&](int64_t begin, int64_t end) { kernels.backward(pass, begin, end); });
}

std::string cpu_isa() { return prnn::cpu::best_kernels().isa; }

}  // namespace

STABLE_TORCH_LIBRARY(prnn_native, library) {
  library.def(
      "rnn_forward(Tensor gates_x, Tensor weight_hh, Tensor? bias_hh, Tensor h0, Tensor? lengths, Tensor? resets, "
      "bool relu, Tensor(a!) output, Tensor(b!) h_n) -> ()");
  library.def(
      "rnn_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor weight_hh, Tensor? lengths, Tensor? resets, "
      "Tensor output, bool relu, Tensor(a!) grad_gates, Tensor(b!) grad_h0) -> ()");
  library.def("cpu_isa() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(prnn_native, CPU, library) {
  library.impl("rnn_forward", TORCH_BOX(&rnn_forward));
  library.impl("rnn_backward", TORCH_BOX(&rnn_backward));
}

STABLE_TORCH_LIBRARY_IMPL(prnn_native, CompositeExplicitAutograd, library) {
  library.impl("cpu_isa", TORCH_BOX(&cpu_isa));
}
