// AVX2 and FMA.
// Included by the library's kernel file and by the kernels of cells written in Python.
#include "target.h"

#define PRNN_ISA avx2
#define PRNN_ISA_NAME "avx2"
#define PRNN_LANES 8
#define PRNN_AVX 2
#define PRNN_ISA_BEGIN PRNN_TARGET_BEGIN("avx2,fma")
#define PRNN_ISA_END PRNN_TARGET_END
