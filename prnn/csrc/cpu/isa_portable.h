// Any processor: vectors of four floats, SSE2 on x86-64, NEON on 64-bit ARM.
// Included by the library's kernel file and by the kernels of cells written in Python.
#define PRNN_ISA portable
#if defined(__aarch64__)
#define PRNN_ISA_NAME "neon"
#else
#define PRNN_ISA_NAME "portable"
#endif
#define PRNN_LANES 4
#define PRNN_ISA_BEGIN
#define PRNN_ISA_END
