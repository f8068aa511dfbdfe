// What the regimes of csrc/cuda are made of, one by one: the latencies and rates that plan.cpp's cost model assumes.
// Built and run by `python -m benchmarks.gpu_check`; prints JSON: nanoseconds, or GB/s, or cycles where it says so.
#include <cooperative_groups.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "primitives.cuh"

using namespace prnn::cuda;

namespace {

constexpr int kRounds = 2000;

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

// The median of 7 launches, in nanoseconds for each round.
template <class Kernel, class... Arguments>
double nanoseconds(Kernel kernel, int blocks, int threads, int cluster, bool cooperative, int shared,
                   Arguments... rest) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks), config.blockDim = dim3(threads), config.dynamicSmemBytes = size_t(shared);
  cudaLaunchAttribute attribute{};
  config.attrs = &attribute;
  const auto function = reinterpret_cast<const void*>(kernel);
  check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), "shared memory");
  if (cluster > 0) {
    if (cluster > 8)
      check(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cluster");
    attribute.id = cudaLaunchAttributeClusterDimension, attribute.val.clusterDim = {unsigned(cluster), 1, 1};
    config.numAttrs = 1;
  } else if (cooperative) {
    attribute.id = cudaLaunchAttributeCooperative, attribute.val.cooperative = 1;
    config.numAttrs = 1;
  }
  cudaEvent_t from, to;
  check(cudaEventCreate(&from), "event"), check(cudaEventCreate(&to), "event");
  std::vector<float> times;
  for (int i = 0; i < 8; ++i) {
    check(cudaEventRecord(from), "event");
    check(cudaLaunchKernelEx(&config, kernel, rest...), "launch");
    check(cudaEventRecord(to), "event");
    check(cudaEventSynchronize(to), "kernel");
    float milliseconds;
    check(cudaEventElapsedTime(&milliseconds, from, to), "event");
    if (i > 0) times.push_back(milliseconds);
  }
  std::sort(times.begin(), times.end());
  return 1e6 * times[times.size() / 2] / kRounds;
}

__global__ void chase(const uint32_t* next, uint32_t* sink) {
  uint32_t at = 0;
  for (int i = 0; i < kRounds; ++i) at = exchange_load(next + at).word[0];
  *sink = at;
}

// Blocks 0 and `other` write a number each and wait for the other's.
__global__ void ping_pong(uint32_t* words, int other, uint32_t base) {
  if (thread() != 0 || (block() != 0 && block() != other)) return;
  uint32_t* own = words + (block() == 0 ? 0 : 64);
  uint32_t* others = words + (block() == 0 ? 64 : 0);
  for (uint32_t i = 1; i <= kRounds; ++i) {
    if (block() == 0) exchange_store(own, base + i);
    while (exchange_load(others).word[0] != base + i) {
    }
    if (block() != 0) exchange_store(own, base + i);
  }
}

__global__ void grid_barriers() {
  const auto grid = cooperative_groups::this_grid();
  for (int i = 0; i < kRounds; ++i) grid.sync();
}

__global__ void cluster_barriers() {
  for (int i = 0; i < kRounds; ++i) sync_cluster();
}

__global__ void block_barriers() {
  for (int i = 0; i < kRounds; ++i) sync_block();
}

// As the cluster regime does: each block sends `bytes` of its own to all others, and waits for theirs.
__global__ void all_to_all(int cluster, int bytes) {
  char* memory = shared_memory();
  uint64_t* barriers = reinterpret_cast<uint64_t*>(memory);
  char* buffers = memory + 128;
  const int rank = block() % cluster, size = cluster * bytes;
  for (int i = thread() * 16; i < 2 * size; i += 256 * 16) shared_store(buffers + i, Words4{});
  if (thread() == 0) {
    for (int i = 0; i < 2; ++i) barrier_init(barriers + i);
    for (int i = 0; i < 2; ++i) barrier_expect(barriers + i, bytes * (cluster - 1));
  }
  sync_block();
  sync_cluster();
  for (int round = 0; round < kRounds; ++round) {
    char* buffer = buffers + round % 2 * size + rank * bytes;
    const int pieces = bytes / 16;
    for (int i = thread(); i < pieces * (cluster - 1); i += 256) {
      char* from = buffer + i % pieces * 16;
      remote_store(from, shared_load<Words4>(from), barriers + round % 2, (rank + 1 + i / pieces) % cluster);
    }
    while (!barrier_try(barriers + round % 2, round / 2 % 2)) {
    }
    sync_block();
    if (thread() == 0) barrier_expect(barriers + round % 2, bytes * (cluster - 1));
    sync_block();
  }
  sync_cluster();
}

__global__ void products(float* sink) {
  float acc[8][4] = {};
  const uint32_t a[4] = {1, 2, 3, uint32_t(thread())}, b[2] = {4, 5};
  for (int i = 0; i < kRounds; ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j) multiply_tile(acc[j], a, b, Bfloat16{});
  float sum = 0;
  for (int j = 0; j < 8; ++j) sum += acc[j][0];
  if (sum == 1) *sink = sum;
}

// All blocks read `bytes` that are in L2, as the grid regime does each step.
__global__ void read_l2(const char* from, int bytes, uint32_t* sink) {
  uint32_t sum = 0;
  for (int i = 0; i < kRounds; ++i)
    for (int at = thread() * 16; at < bytes; at += 256 * 16) sum += exchange_load(from + at).word[0];
  if (sum == 1) *sink = sum;
}

}  // namespace

int main() {
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0), "device");
  int clock = 0;
  check(cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, 0), "clock");
  uint32_t* words;
  check(cudaMalloc(&words, 1 << 20), "memory");
  std::vector<uint32_t> next(4096 * 32);
  for (size_t i = 0; i < 4096; ++i) next[i * 32] = uint32_t((i * 1021 + 7) % 4096 * 32);
  check(cudaMemcpy(words, next.data(), next.size() * 4, cudaMemcpyHostToDevice), "memory");
  std::printf("{\n  \"device\": \"%s\",\n  \"multiprocessors\": %d,\n  \"clock_mhz\": %.0f", device.name,
              device.multiProcessorCount, clock * 1e-3);
  const auto show = [](const std::string& name, double value) {
    std::printf(",\n  \"%s\": %.4g", name.c_str(), value);
  };
  show("l2_load_ns", nanoseconds(chase, 1, 1, 0, false, 0, words, words + 200000));
  check(cudaMemset(words, 0, 1 << 20), "memory");
  for (const int other : {1, 2, device.multiProcessorCount - 1}) {
    static uint32_t base = 0;
    // Every launch counts on from where the last one stopped, which nanoseconds() does not know: one launch each.
    cudaEvent_t from, to;
    check(cudaEventCreate(&from), "event"), check(cudaEventCreate(&to), "event");
    std::vector<float> times;
    for (int i = 0; i < 8; ++i, base += kRounds) {
      check(cudaEventRecord(from), "event");
      ping_pong<<<device.multiProcessorCount, 32>>>(words, other, base);
      check(cudaEventRecord(to), "event"), check(cudaEventSynchronize(to), "kernel");
      float milliseconds;
      check(cudaEventElapsedTime(&milliseconds, from, to), "event");
      if (i > 0) times.push_back(milliseconds);
    }
    std::sort(times.begin(), times.end());
    show("flag_round_trip_ns_to_block_" + std::to_string(other), 1e6 * times[3] / kRounds);
  }
  show("block_barrier_ns", nanoseconds(block_barriers, 1, 256, 0, false, 0));
  show("grid_barrier_ns", nanoseconds(grid_barriers, device.multiProcessorCount, 256, 0, true, 0));
  for (const int bytes : {4096, 16384, 65536}) {
    const double ns = nanoseconds(read_l2, device.multiProcessorCount, 256, 0, false, 0, reinterpret_cast<char*>(words),
                                  bytes, words + 200000);
    show("l2_read_all_blocks_" + std::to_string(bytes) + "_bytes_ns", ns);
  }
  show("mma_m16n8k16_cycles_per_tensor_core",
       nanoseconds(products, 1, 256, 0, false, 0, reinterpret_cast<float*>(words)) * clock * 1e-6 / 16);
  if (device.major >= 9)
    for (const int cluster : {2, 4, 8, 16}) {
      const std::string name = "cluster_" + std::to_string(cluster);
      show(name + "_barrier_ns", nanoseconds(cluster_barriers, cluster, 256, cluster, false, 0));
      for (const int bytes : {256, 1024})
        show(name + "_all_to_all_" + std::to_string(bytes) + "_bytes_ns",
             nanoseconds(all_to_all, cluster, 256, cluster, false, 128 + 2 * cluster * bytes, cluster, bytes));
    }
  std::printf("\n}\n");
}
