#include "instances.cuh"

PRNN_KERNELS_OF(RnnTanh, rnn_tanh)
