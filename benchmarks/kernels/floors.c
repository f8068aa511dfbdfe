/* The peak rates of the processor: fused multiply-adds from registers, and reading memory that stays in a cache.
 *
 *     cc -O3 -march=native -fopenmp floors.c -o floors && ./floors THREADS BYTES...
 *
 * prints "fma FLOPS" and, for each number of BYTES (of one thread's own array), "read BYTES BYTES_PER_SECOND", each the
 * best of several tries with THREADS threads together. Compiled and run by floors.py.
 */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

#if defined(__AVX512F__)
#define WIDTH 64
#elif defined(__AVX__)
#define WIDTH 32
#else
#define WIDTH 16
#endif

typedef float vec __attribute__((vector_size(WIDTH)));

/* Independent sums: two units times a latency of 4 or 5 cycles need 8 to 10, and AVX2 has 16 registers. */
enum { CHAINS = 12, LANES = WIDTH / sizeof(float), TRIES = 9 };

static volatile float sink; /* prevents dead-code elimination */

static void consume(vec values) {
  for (int i = 0; i < LANES; i++) sink = values[i];
}

static double fma_seconds(int threads, long steps) {
  double began = omp_get_wtime();
#pragma omp parallel num_threads(threads)
  {
    vec sums[CHAINS], factor, addend, total = {0};
    for (int i = 0; i < LANES; i++) factor[i] = 0.5f, addend[i] = 1.0f + omp_get_thread_num();
    for (int i = 0; i < CHAINS; i++) sums[i] = addend + (float)i; /* distinct, so that they are not merged */
    for (long step = 0; step < steps; step++)
#pragma GCC unroll 12
      for (int i = 0; i < CHAINS; i++) sums[i] = sums[i] * factor + addend;
    for (int i = 0; i < CHAINS; i++) total += sums[i];
    consume(total);
  }
  return omp_get_wtime() - began;
}

static double read_seconds(int threads, float *const *arrays, long bytes, long passes) {
  double began = omp_get_wtime();
#pragma omp parallel num_threads(threads)
  {
    vec sums[8] = {{0}};
    const vec *array = (const vec *)arrays[omp_get_thread_num()];
    long count = bytes / WIDTH;
    for (long pass = 0; pass < passes; pass++)
      for (long i = 0; i + 8 <= count; i += 8)
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) sums[j] += array[i + j];
    for (int j = 1; j < 8; j++) sums[0] += sums[j];
    consume(sums[0]);
  }
  return omp_get_wtime() - began;
}

int main(int argc, char **argv) {
  int threads = argc > 1 ? atoi(argv[1]) : 1;
  long steps = 4000000;
  double best = 1e9;
  for (int i = 0; i < TRIES; i++) {
    double seconds = fma_seconds(threads, steps);
    if (seconds < best) best = seconds;
  }
  printf("fma %.6g\n", 2.0 * threads * steps * CHAINS * LANES / best);
  for (int a = 2; a < argc; a++) {
    long bytes = atol(argv[a]) / (8 * WIDTH) * (8 * WIDTH), passes = (64L << 20) / bytes + 1;
    float **arrays = malloc(threads * sizeof *arrays);
    for (int t = 0; t < threads; t++) {
      arrays[t] = aligned_alloc(64, bytes);
      for (long i = 0; i < bytes / 4; i++) arrays[t][i] = 1.0f;
    }
    best = 1e9;
    for (int i = 0; i < TRIES; i++) {
      double seconds = read_seconds(threads, arrays, bytes, passes);
      if (seconds < best) best = seconds;
    }
    printf("read %s %.6g\n", argv[a], (double)threads * bytes * passes / best);
    for (int t = 0; t < threads; t++) free(arrays[t]);
    free(arrays);
  }
  return 0;
}
