#include "instances.cuh"

namespace prnn::cuda {

Kernels rnn_tanh_kernels(Dtype dtype) { return kernels_of<exact::RnnTanh, quick::RnnTanh>(dtype); }

}  // namespace prnn::cuda
