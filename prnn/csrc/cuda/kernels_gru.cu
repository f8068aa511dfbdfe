#include "instances.cuh"

namespace prnn::cuda {

Kernels gru_kernels(Dtype dtype) { return kernels_of<exact::Gru, quick::Gru>(dtype); }

}  // namespace prnn::cuda
