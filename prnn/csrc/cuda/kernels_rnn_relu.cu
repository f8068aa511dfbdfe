#include "instances.cuh"

namespace prnn::cuda {

Kernels rnn_relu_kernels(Dtype dtype) { return kernels_of<exact::RnnRelu, quick::RnnRelu>(dtype); }

}  // namespace prnn::cuda
