// A GPU for csrc/cuda on the host: each CUDA thread is a fiber, and one operating system thread runs them all, in an
// order drawn from a seed. What is watched: reads of shared memory nobody wrote, accesses to it that no barrier orders
// (by vector clocks, also across a cluster), lanes that do not come together, locks, uses of an mbarrier that nothing
// orders after its initialisation, stores into blocks that have ended. From time to time one block or warp, drawn at
// random, is scheduled only when no other can run; in one launch of two it is not scheduled until all others have ended
// or wait for it, which may be many steps later. Stores to global memory that others wait for reach it late and in any
// order until their thread fences; stores into distributed shared memory arrive whenever it pleases them. When all
// threads wait for each other, time passes: those that look at the clock may give up, and if none does it is a lock.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "halves.h"

namespace emulation {

struct Launch {
  int blocks, threads;
  int cluster;  // blocks of one
  int shared_bytes;
  uint64_t seed;
  int rows = 1;  // of the grid, of so many blocks each
};

// Runs body in every thread. Empty if all went well; else what went wrong first.
std::string launch(const Launch& launch, const std::function<void()>& body);

// The rest is called by the threads.
int thread();
int block();  // of its row
int grid_row();
char* shared_memory();

void sync_block();
void sync_named(int id, int count);
void sync_warp();
void sync_cluster();

void shared_load(const void* from, void* to, int bytes);
void shared_store(void* to, const void* from, int bytes);
// From global to shared memory, at once or as late as when it is waited for.
void copy_async(void* to, const void* from, int bytes);
void copy_async_wait();

bool any_lane(bool x);
float shuffle_xor(float x, int mask);
// acc += A B; A is 16 x depth, B depth x 8; depth 16: two elements to a word, depth 8: one.
void multiply_tile(float* acc, const uint32_t* a, const uint32_t* b, int depth, float (*decode)(uint32_t));

void barrier_init(uint64_t* barrier);
void barrier_expect(uint64_t* barrier, int bytes);
bool barrier_test(const uint64_t* barrier, int parity);
bool barrier_try(uint64_t* barrier, int parity);  // waits, at most until all threads wait
void remote_store(void* to, const void* from, int bytes, uint64_t* barrier, int rank);

void exchange_load(const void* from, uint32_t* to, int words);
void exchange_store(void* to, uint32_t word);
void exchange_fence();
void exchange_pause();  // until something has changed, after loads that did not find what they were for

uint64_t nanoseconds();  // stands still while any thread can go on; an hour when none can
[[noreturn]] void trap();

using prnn::test::from_float16, prnn::test::to_bfloat16, prnn::test::to_float16;
float round_to_tf32(float x);

}  // namespace emulation
