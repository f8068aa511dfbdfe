// AVX512-BF16, for bfloat16 alone.
// Included by the library's kernel file and by the kernels of cells written in Python.
#include "target.h"

#define PRNN_ISA avx512_bf16
#define PRNN_ISA_NAME "avx512_bf16"
#define PRNN_LANES 16
#define PRNN_AVX 512
#define PRNN_BF16_PAIRS
#define PRNN_AVX512_BF16
#define PRNN_ISA_BEGIN PRNN_TARGET_BEGIN("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,avx512bf16")
#define PRNN_ISA_END PRNN_TARGET_END
