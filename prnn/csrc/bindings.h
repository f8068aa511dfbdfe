// Helpers of the bindings: dense operands, checks, and pointers. Uses only torch's stable ABI.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <exception>
#include <functional>
#include <initializer_list>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "layer_args.h"
#include "out_of_memory.h"

namespace prnn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

inline int64_t element_size(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
    case ScalarType::Long:
      return 8;
    case ScalarType::Float:
      return 4;
    case ScalarType::Bool:
      return 1;
    default:
      return 2;
  }
}

// Calls `make` and reports a failure as out of memory: torch's errors lose their message across the ABI, and an
// allocation fails for no other reason.
template <class Sizes, class Make>
Tensor allocated(const Tensor& like, const Sizes& shape, const Make& make) {
  try {
    return make();
  } catch (const std::exception&) {
    double bytes = static_cast<double>(element_size(like));
    for (const int64_t size : shape) bytes *= static_cast<double>(size);
    out_of_memory(bytes);
  }
}
inline Tensor uninitialized(const Tensor& like, const std::vector<int64_t>& shape) {
  return allocated(like, shape, [&] { return torch::stable::new_empty(like, shape); });
}
inline Tensor gathered(const Tensor& tensor) {
  return allocated(tensor, tensor.sizes(), [&] { return torch::stable::contiguous(tensor); });
}

// On torch's threads. An exception is carried around the ABI, where it would lose its message as well.
inline void in_parallel(int64_t n, const std::function<void(int64_t, int64_t)>& body) {
  std::exception_ptr failure;
  std::mutex mutex;
  torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    try {
      body(begin, end);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      failure = std::current_exception();
    }
  });
  if (failure) std::rethrow_exception(failure);
}

inline Tensor dense(const Tensor& tensor) { return tensor.is_contiguous() ? tensor : gathered(tensor); }
inline Optional dense(const Optional& tensor) { return tensor ? Optional(dense(*tensor)) : tensor; }

// A sequence whose rows are dense; its steps and samples may have any stride.
inline Tensor dense_rows(const Tensor& tensor) {
  return tensor.stride(2) == 1 || tensor.size(2) == 1 ? tensor : gathered(tensor);
}

inline const void* data(const Tensor& tensor) { return tensor.const_data_ptr(); }
template <class X = void>
const X* data(const Optional& tensor) {
  return tensor ? static_cast<const X*>(tensor->const_data_ptr()) : nullptr;
}
inline void* results(const Tensor& tensor) { return tensor.mutable_data_ptr(); }

// base + d * bytes, for direction d; null stays null.
inline const void* shifted(const void* base, int64_t d, int64_t bytes) {
  return base ? static_cast<const char*>(base) + d * bytes : nullptr;
}
inline void* shifted(void* base, int64_t d, int64_t bytes) {
  return base ? static_cast<char*>(base) + d * bytes : nullptr;
}
inline const float* floats(const Optional& base, int64_t d, int64_t count) {
  return base ? static_cast<const float*>(base->const_data_ptr()) + d * count : nullptr;
}
inline float* floats(const Tensor& base, int64_t d, int64_t count) {
  return static_cast<float*>(base.mutable_data_ptr()) + d * count;
}

inline void check(const Optional& tensor, std::initializer_list<int64_t> shape, ScalarType dtype) {
  if (!tensor) return;
  const auto sizes = tensor->sizes();
  const bool fits = sizes.size() == shape.size() && std::equal(shape.begin(), shape.end(), sizes.begin());
  STD_TORCH_CHECK(fits && tensor->scalar_type() == dtype, "prnn_native: an operand's shape or dtype does not fit");
}

template <class Void>
Sequence<Void> sequence(const Tensor& tensor, Void* data) {
  return {data, tensor.stride(0), tensor.stride(1)};
}

}  // namespace prnn
