#include "instances.cuh"

PRNN_KERNELS_OF(Gru, gru)
