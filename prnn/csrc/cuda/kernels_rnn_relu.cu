#include "instances.cuh"

PRNN_KERNELS_OF(RnnRelu, rnn_relu)
