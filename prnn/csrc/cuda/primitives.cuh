// GPU primitives, each with a host implementation (primitives_host.cuh), in which a CUDA thread is a fiber of
// tests/cuda_emulation: the same kernels run, with checks, without a GPU. Everything else in this folder is plain C++.
//
// A warp's lanes call these together unless noted otherwise. Sources: the PTX ISA 8.x, cited at each.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define PRNN_KERNEL(threads) __global__ void __launch_bounds__(threads, 1)
#define PRNN_OPERAND const __grid_constant__
#define PRNN_DEVICE_MEMBER __device__ __forceinline__
#define PRNN_DEVICE static PRNN_DEVICE_MEMBER
#define PRNN_COLD static __device__ __noinline__
#else
#include <cmath>
#include <cstring>

#include "emulation.h"
#define PRNN_KERNEL(threads) void
#define PRNN_OPERAND const
#define PRNN_DEVICE_MEMBER inline
#define PRNN_DEVICE static PRNN_DEVICE_MEMBER
#define PRNN_COLD static inline
#endif

namespace prnn::cuda {

// The bit patterns of 16-bit elements.
struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

struct alignas(8) Words2 {
  uint32_t word[2];
};
struct alignas(16) Words4 {
  uint32_t word[4];
};

template <class To, class From>
PRNN_DEVICE To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

PRNN_DEVICE float to_float(float x) { return x; }
PRNN_DEVICE float to_float(Bfloat16 x) { return bits_of<float>(uint32_t(x.bits) << 16); }
PRNN_DEVICE void from_float(float x, float& y) { y = x; }

#ifdef __CUDACC__

PRNN_DEVICE int thread() { return threadIdx.x; }
PRNN_DEVICE int block() { return blockIdx.x; }
PRNN_DEVICE int grid_row() { return blockIdx.y; }
PRNN_DEVICE char* shared_memory() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}
PRNN_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

PRNN_DEVICE float to_float(Float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
// Conversions of a pair: those of one element run at a quarter of the rate.
PRNN_DEVICE void from_float(float x, Bfloat16& y) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(0.0f), "f"(x));
  y.bits = static_cast<uint16_t>(pair);
}
PRNN_DEVICE void from_float(float x, Float16& y) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(0.0f), "f"(x));
  y.bits = static_cast<uint16_t>(pair);
}
PRNN_DEVICE float round_to_tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return __uint_as_float(y);
}

PRNN_DEVICE float fast_exponential(float x) {  // its error grows with |x|; below 2^-126 it is zero
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
  return y;
}
PRNN_DEVICE float exponential(float x) { return expf(x); }
PRNN_DEVICE double exponential(double x) { return exp(x); }
PRNN_DEVICE float quotient(float x, float y) { return __fdividef(x, y); }
PRNN_DEVICE float tangent(float x) { return tanhf(x); }
PRNN_DEVICE float multiply_add(float x, float y, float z) { return fmaf(x, y, z); }

// Barriers: all threads of the block; `count` threads of it that name the same `id` (1..15); the warp; the cluster.
PRNN_DEVICE void sync_block() { __syncthreads(); }
PRNN_DEVICE void sync_named(int id, int count) {
  asm volatile("barrier.sync %0, %1;" ::"r"(id), "r"(count) : "memory");
}
PRNN_DEVICE void sync_warp() { __syncwarp(); }
PRNN_DEVICE void sync_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
#endif
}

// x, computed no later than here.
PRNN_DEVICE int computed_here(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

template <class X>
PRNN_DEVICE X shared_load(const void* p) {
  return *static_cast<const X*>(p);
}
template <class X>
PRNN_DEVICE void shared_store(void* p, X x) {
  *static_cast<X*>(p) = x;
}

// Asynchronous copy of an element from global to shared memory: visible to the thread after the wait, to other threads
// after a barrier that follows the wait. By each thread independently. PTX ISA, "cp.async".
template <class E>
PRNN_DEVICE void copy_async(E* to, const E* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(to)), "l"(from), "n"(sizeof(E))
               : "memory");
}
PRNN_DEVICE void copy_async_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

PRNN_DEVICE bool any_lane(bool x) { return __any_sync(0xFFFFFFFFu, x); }
PRNN_DEVICE uint32_t shuffle_xor(uint32_t x, int mask) { return __shfl_xor_sync(0xFFFFFFFFu, x, mask); }
PRNN_DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xFFFFFFFFu, x, mask); }
PRNN_DEVICE double shuffle_xor(double x, int mask) { return __shfl_xor_sync(0xFFFFFFFFu, x, mask); }

// acc += A B for a 16 x 16 A and a 16 x 8 B: mma.m16n8k16, fragments as in the PTX ISA, "Matrix fragments".
PRNN_DEVICE void multiply_tile(float (&acc)[4], const uint32_t* a, const uint32_t* b, Bfloat16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
PRNN_DEVICE void multiply_tile(float (&acc)[4], const uint32_t* a, const uint32_t* b, Float16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// The same for a 16 x 8 A and an 8 x 8 B in tf32: mma.m16n8k8.
PRNN_DEVICE void multiply_tile_tf32(float (&acc)[4], const uint32_t* a, const uint32_t* b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// mbarriers: one arrival, with the number of expected bytes; stores into distributed shared memory complete it.
PRNN_DEVICE void barrier_init(uint64_t* barrier) {  // by one thread; a sync_cluster must follow
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
PRNN_DEVICE void barrier_expect(uint64_t* barrier, int bytes) {  // by one thread
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
#endif
}
// Whether the phase of this parity is complete, with acquire semantics. `test` returns at once; `try` suspends the
// thread until the phase completes or the hardware's time limit expires.
PRNN_DEVICE bool barrier_test(uint64_t* barrier, int parity) {
  uint32_t done = 1;
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .pred p;\nmbarrier.test_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
#endif
  return done;
}
PRNN_DEVICE bool barrier_try(uint64_t* barrier, int parity) {
  uint32_t done = 1;
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
#endif
  return done;
}
// Stores 16 bytes at `to` in the shared memory of the cluster's block `rank`, and completes 16 bytes of its `barrier`.
// By each thread independently.
PRNN_DEVICE void remote_store(void* to, Words4 x, uint64_t* barrier, int rank) {
#if __CUDA_ARCH__ >= 900
  uint32_t place, signal;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(place) : "r"(shared_address(to)), "r"(rank));
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(signal) : "r"(shared_address(barrier)), "r"(rank));
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(place),
               "r"(x.word[0]), "r"(x.word[1]), "r"(x.word[2]), "r"(x.word[3]), "r"(signal)
               : "memory");
#endif
}

// Exchange through global memory, each 32-bit word independently; only the fence orders different words.
// By each thread independently.
PRNN_DEVICE Words4 exchange_load(const void* p) {
  Words4 x;
  asm volatile("ld.relaxed.gpu.global.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(x.word[0]), "=r"(x.word[1]), "=r"(x.word[2]), "=r"(x.word[3])
               : "l"(p)
               : "memory");
  return x;
}
// The same where `wanted`, by a predicate: a branch would keep several of them from being in flight together.
PRNN_DEVICE void exchange_load_if(bool wanted, Words4& x, const void* p) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %5, 0;\n@p ld.relaxed.gpu.global.v4.b32 {%0,%1,%2,%3}, [%4];\n}"
               : "+r"(x.word[0]), "+r"(x.word[1]), "+r"(x.word[2]), "+r"(x.word[3])
               : "l"(p), "r"(uint32_t(wanted))
               : "memory");
}
PRNN_DEVICE void exchange_load_if(bool wanted, Words2& x, const void* p) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %3, 0;\n@p ld.relaxed.gpu.global.v2.b32 {%0,%1}, [%2];\n}"
               : "+r"(x.word[0]), "+r"(x.word[1])
               : "l"(p), "r"(uint32_t(wanted))
               : "memory");
}
PRNN_DEVICE void exchange_store(void* p, uint32_t x) {
  asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(p), "r"(x) : "memory");
}
PRNN_DEVICE void exchange_pause() {}  // after loads that have found nothing: for the emulator, which runs others then
PRNN_DEVICE void exchange_fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// For the record of a timeout, in host memory. By one thread.
PRNN_DEVICE uint64_t nanoseconds() {  // the resolution of some clocks is a microsecond, of others a millisecond
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}
PRNN_DEVICE bool first_to_claim(unsigned* word, unsigned free, unsigned own) {
  return atomicCAS(word, free, own) == free;
}
PRNN_DEVICE unsigned load_from_host(const unsigned* word) { return *static_cast<const volatile unsigned*>(word); }
PRNN_DEVICE void store_to_host(unsigned* word, unsigned x) {  // release: after all earlier writes of this thread
  __threadfence_system();
  *static_cast<volatile unsigned*>(word) = x;
  __threadfence_system();
}
[[noreturn]] PRNN_DEVICE void trap() {
  asm volatile("trap;");
  __builtin_unreachable();
}

#endif

}  // namespace prnn::cuda

#ifndef __CUDACC__
#include "primitives_host.cuh"
#endif

namespace prnn::cuda {

template <class E>
PRNN_DEVICE E element_of(float x) {
  E y;
  from_float(x, y);
  return y;
}
PRNN_DEVICE int lane() { return thread() % 32; }
PRNN_DEVICE int warp() { return thread() / 32; }

}  // namespace prnn::cuda
