#include "instances.cuh"

namespace prnn::cuda {

Kernels lstm_kernels(Dtype dtype) { return kernels_of<exact::Lstm, quick::Lstm>(dtype); }

}  // namespace prnn::cuda
