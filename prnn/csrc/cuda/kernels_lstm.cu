#include "instances.cuh"

PRNN_KERNELS_OF(Lstm, lstm)
