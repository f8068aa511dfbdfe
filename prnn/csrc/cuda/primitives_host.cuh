// The host implementations of the primitives; included by primitives.cuh.
#pragma once

namespace prnn::cuda {

PRNN_DEVICE int thread() { return emulation::thread(); }
PRNN_DEVICE int block() { return emulation::block(); }
PRNN_DEVICE int grid_row() { return emulation::grid_row(); }
PRNN_DEVICE char* shared_memory() { return emulation::shared_memory(); }

PRNN_DEVICE float to_float(Float16 x) { return emulation::from_float16(x.bits); }
PRNN_DEVICE void from_float(float x, Bfloat16& y) { y.bits = emulation::to_bfloat16(x); }
PRNN_DEVICE void from_float(float x, Float16& y) { y.bits = emulation::to_float16(x); }
PRNN_DEVICE float round_to_tf32(float x) { return emulation::round_to_tf32(x); }

PRNN_DEVICE float fast_exponential(float x) { return std::exp(x); }
PRNN_DEVICE float exponential(float x) { return std::exp(x); }
PRNN_DEVICE double exponential(double x) { return std::exp(x); }
PRNN_DEVICE float quotient(float x, float y) { return x / y; }
PRNN_DEVICE float tangent(float x) { return std::tanh(x); }
PRNN_DEVICE float multiply_add(float x, float y, float z) { return x * y + z; }

PRNN_DEVICE void sync_block() { emulation::sync_block(); }
PRNN_DEVICE void sync_named(int id, int count) { emulation::sync_named(id, count); }
PRNN_DEVICE void sync_warp() { emulation::sync_warp(); }
PRNN_DEVICE void sync_cluster() { emulation::sync_cluster(); }
PRNN_DEVICE int computed_here(int x) { return x; }

template <class X>
PRNN_DEVICE X shared_load(const void* p) {
  X x;
  emulation::shared_load(p, &x, sizeof(x));
  return x;
}
template <class X>
PRNN_DEVICE void shared_store(void* p, X x) {
  emulation::shared_store(p, &x, sizeof(x));
}

template <class E>
PRNN_DEVICE void copy_async(E* to, const E* from) {
  emulation::copy_async(to, from, sizeof(E));
}
PRNN_DEVICE void copy_async_wait() { emulation::copy_async_wait(); }

PRNN_DEVICE bool any_lane(bool x) { return emulation::any_lane(x); }
PRNN_DEVICE uint32_t shuffle_xor(uint32_t x, int mask) {
  return bits_of<uint32_t>(emulation::shuffle_xor(bits_of<float>(x), mask));
}
PRNN_DEVICE float shuffle_xor(float x, int mask) { return emulation::shuffle_xor(x, mask); }
PRNN_DEVICE double shuffle_xor(double x, int mask) {
  float half[2];
  memcpy(half, &x, sizeof(x));
  for (float& own : half) own = emulation::shuffle_xor(own, mask);
  memcpy(&x, half, sizeof(x));
  return x;
}

PRNN_DEVICE void multiply_tile(float (&acc)[4], const uint32_t* a, const uint32_t* b, Bfloat16) {
  emulation::multiply_tile(acc, a, b, 16, [](uint32_t bits) { return to_float(Bfloat16{uint16_t(bits)}); });
}
PRNN_DEVICE void multiply_tile(float (&acc)[4], const uint32_t* a, const uint32_t* b, Float16) {
  emulation::multiply_tile(acc, a, b, 16, [](uint32_t bits) { return to_float(Float16{uint16_t(bits)}); });
}
PRNN_DEVICE void multiply_tile_tf32(float (&acc)[4], const uint32_t* a, const uint32_t* b) {
  // The tensor cores use only the upper 19 bits.
  emulation::multiply_tile(acc, a, b, 8, [](uint32_t bits) { return bits_of<float>(bits & ~0x1FFFu); });
}

PRNN_DEVICE void barrier_init(uint64_t* barrier) { emulation::barrier_init(barrier); }
PRNN_DEVICE void barrier_expect(uint64_t* barrier, int bytes) { emulation::barrier_expect(barrier, bytes); }
PRNN_DEVICE bool barrier_test(uint64_t* barrier, int parity) { return emulation::barrier_test(barrier, parity); }
PRNN_DEVICE bool barrier_try(uint64_t* barrier, int parity) { return emulation::barrier_try(barrier, parity); }
PRNN_DEVICE void remote_store(void* to, Words4 x, uint64_t* barrier, int rank) {
  emulation::remote_store(to, &x, sizeof(x), barrier, rank);
}

PRNN_DEVICE Words4 exchange_load(const void* p) {
  Words4 x;
  emulation::exchange_load(p, x.word, 4);
  return x;
}
template <class Words>
PRNN_DEVICE void exchange_load_if(bool wanted, Words& x, const void* p) {
  if (wanted) emulation::exchange_load(p, x.word, sizeof(x) / 4);
}
PRNN_DEVICE void exchange_store(void* p, uint32_t x) { emulation::exchange_store(p, x); }
PRNN_DEVICE void exchange_pause() { emulation::exchange_pause(); }
PRNN_DEVICE void exchange_fence() { emulation::exchange_fence(); }

PRNN_DEVICE uint64_t nanoseconds() { return emulation::nanoseconds(); }
PRNN_DEVICE bool first_to_claim(unsigned* word, unsigned free, unsigned own) {
  return *word == free ? (*word = own, true) : false;
}
PRNN_DEVICE unsigned load_from_host(const unsigned* word) { return *word; }
PRNN_DEVICE void store_to_host(unsigned* word, unsigned x) { *word = x; }
[[noreturn]] PRNN_DEVICE void trap() { emulation::trap(); }

}  // namespace prnn::cuda
