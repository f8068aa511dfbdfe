// Microbenchmarks of the primitives of the regimes in csrc/cuda: the latencies and rates in planner.cpp's cost model.
//
//     micro [NAME ...]    the measurements whose names start with NAME; all by default
//
// Prints a JSON object per line, as soon as it is measured: the device first, then for every measurement its name and
// shape, `ns` per round, the clock `mhz` of the multiprocessor while it ran, both as `cycles`, and `spread`, the range
// of the launches relative to their median; or `error`. Every wait is bounded. The grid's exchange comes last: its
// waits end in a trap, as those of the recurrences, after which nothing can be measured. Exits with 1 if a measurement
// failed. benchmarks/gpu_build.py compiles it.
#include <algorithm>
#include <cstdio>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "micro_kernels.cuh"
#include "planner.h"

namespace {

using namespace prnn::cuda;

constexpr size_t kWorkspaceBytes = 16 << 20;
constexpr int kLaunches = 5;

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// One line of JSON.
class Line {
 public:
  explicit Line(const std::string& name) : text("{\"name\": \"" + name + "\"") {}
  Line& add(const char* key, double value) {
    char number[32];
    std::snprintf(number, sizeof(number), "%.6g", value);
    text += std::string(", \"") + key + "\": " + number;
    return *this;
  }
  Line& add(const char* key, const std::string& value) {
    std::string plain = value;
    for (char& c : plain)
      if (c == '"' || c == '\\' || c < ' ') c = '\'';
    text += std::string(", \"") + key + "\": \"" + plain + "\"";
    return *this;
  }
  void print() const {
    std::printf("%s}\n", text.c_str());
    std::fflush(stdout);
  }

 private:
  std::string text;
};

struct Launch {
  int blocks, threads = kThreads, cluster = 0;
  bool cooperative = false;
  int shared = 0;
};
using Shape = std::vector<std::pair<const char*, int>>;

class Bench {
 public:
  Bench(int count, char** names) : wanted(names, names + count) {
    check(cudaGetDeviceProperties(&device, 0), "device");
    check(cudaDeviceGetAttribute(&shared_memory, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0), "device");
    int clock = 0;
    check(cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, 0), "device");
    check(cudaMalloc(&workspace, kWorkspaceBytes), "memory");
    check(cudaMalloc(&run.signals, 256), "memory");
    run.clocks = reinterpret_cast<unsigned long long*>(run.signals + 32);
    void* fault;
    check(cudaHostAlloc(&fault, sizeof(Fault), cudaHostAllocMapped), "memory");
    limit.fault = new (fault) Fault{};
    limit.ticks = int32_t(kGiveUpNanoseconds >> kTickShift), limit.polls = 1 << 14;
    check(cudaEventCreate(&from), "event"), check(cudaEventCreate(&to), "event");
    Line line("device");
    line.add("device", std::string(device.name))
        .add("capability", std::to_string(device.major) + "." + std::to_string(device.minor));
    line.add("multiprocessors", device.multiProcessorCount).add("most_mhz", clock * 1e-3);
    line.add("shared_bytes", shared_memory).add("l2_bytes", device.l2CacheSize).print();
  }

  // `each`: operations per round. The workspace is filled with 0xFF before a kernel starts. The time of a round is the
  // extra time of additional rounds, which excludes the launch.
  template <class Kernel, class... Arguments>
  void measure(const std::string& name, const Shape& shape, const Launch& launch, int rounds, double each,
               Kernel kernel, Arguments... arguments) {
    if (!is_wanted(name)) return;
    Line line(name);
    for (const auto& [key, value] : shape) line.add(key, value);
    try {
      std::vector<double> few, many;
      double mhz = 0;
      for (int i = 0; i <= kLaunches; ++i) {
        const double short_time = milliseconds(launch, rounds, kernel, arguments...);
        const double long_time = milliseconds(launch, 3 * rounds, kernel, arguments...);
        mhz = clock_mhz();
        if (i > 0) few.push_back(short_time), many.push_back(long_time);  // the first ones load the kernel
      }
      std::sort(few.begin(), few.end()), std::sort(many.begin(), many.end());
      const double ns = 1e6 * (many[kLaunches / 2] - few[kLaunches / 2]) / (2.0 * rounds) / each;
      line.add("ns", ns).add("cycles", ns * mhz * 1e-3).add("mhz", mhz);
      line.add("spread", (many.back() - many.front()) / many[kLaunches / 2]);
    } catch (const std::runtime_error& error) {
      line.add("error", std::string(error.what()));
      failed = true;
    }
    line.print();
  }

  // The clock of a multiprocessor while all are busy.
  void sm_clock(const std::string& name) {
    if (!is_wanted(name)) return;
    Line line(name);
    try {
      milliseconds({device.multiProcessorCount}, 1, spin);
      line.add("mhz", clock_mhz());
    } catch (const std::runtime_error& error) {
      line.add("error", std::string(error.what()));
      failed = true;
    }
    line.print();
  }

  cudaDeviceProp device;
  int shared_memory = 0;      // bytes a block may ask for
  char* workspace = nullptr;  // [kWorkspaceBytes]
  WaitLimit limit{};          // of the exchange's waits
  bool failed = false;

 private:
  bool is_wanted(const std::string& name) const {
    return wanted.empty() || std::any_of(wanted.begin(), wanted.end(), [&](const std::string& beginning) {
             return name.compare(0, beginning.size(), beginning) == 0;
           });
  }

  template <class Kernel, class... Arguments>
  double milliseconds(const Launch& launch, int rounds, Kernel kernel, Arguments... arguments) {
    const auto function = reinterpret_cast<const void*>(kernel);
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(unsigned(launch.blocks)), config.blockDim = dim3(unsigned(launch.threads));
    config.dynamicSmemBytes = size_t(launch.shared);
    cudaLaunchAttribute attribute{};
    config.attrs = &attribute;
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, launch.shared), "shared memory");
    if (launch.cluster > 0) {
      check(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cluster");
      attribute.id = cudaLaunchAttributeClusterDimension, attribute.val.clusterDim = {unsigned(launch.cluster), 1, 1};
      config.numAttrs = 1;
    } else if (launch.cooperative) {
      attribute.id = cudaLaunchAttributeCooperative, attribute.val.cooperative = 1;
      config.numAttrs = 1;
    }
    run.rounds = rounds;
    check(cudaMemset(workspace, 0xFF, kWorkspaceBytes), "memory"), check(cudaMemset(run.signals, 0, 256), "memory");
    check(cudaEventRecord(from), "event");
    check(cudaLaunchKernelEx(&config, kernel, run, arguments...), "launch");
    check(cudaEventRecord(to), "event"), check(cudaEventSynchronize(to), "kernel");
    uint32_t signal;
    check(cudaMemcpy(&signal, run.signals, sizeof(signal), cudaMemcpyDeviceToHost), "memory");
    if (signal) throw std::runtime_error("a wait was given up after a second, or what came was wrong");
    float time;
    check(cudaEventElapsedTime(&time, from, to), "event");
    return time;
  }

  // Of the last launch.
  double clock_mhz() const {
    unsigned long long clocks[4];
    check(cudaMemcpy(clocks, run.clocks, sizeof(clocks), cudaMemcpyDeviceToHost), "memory");
    return clocks[3] > clocks[1] ? 1e3 * double(clocks[2] - clocks[0]) / double(clocks[3] - clocks[1]) : 0;
  }

  std::vector<std::string> wanted;
  Run run{};
  cudaEvent_t from, to;
};

void measure_multiprocessor(Bench& bench) {
  bench.measure("block_barrier", {}, {1}, 20000, 1, block_barriers);
  bench.measure("mma_m16n8k16_per_tensor_core", {}, {1}, 10000, 16, products);
  bench.measure("mma_m16n8k16_dependent", {}, {1, 32}, 20000, 1, dependent_products);
  for (const int bytes : {16384, 32768})
    bench.measure("shared_read", {{"bytes", bytes}}, {1, kThreads, 0, false, bytes}, 4000, 1, read_shared, bytes);
}

void measure_grid(Bench& bench) {
  const int all = bench.device.multiProcessorCount, most = bench.shared_memory;
  std::vector<uint32_t> next(4096 * 32);  // 4096 lines of 128 bytes, in an unpredictable order
  for (size_t i = 0; i < 4096; ++i) next[i * 32] = uint32_t((i * 1021 + 7) % 4096 * 32);
  uint32_t* lines;
  check(cudaMalloc(&lines, next.size() * 4), "memory");
  check(cudaMemcpy(lines, next.data(), next.size() * 4, cudaMemcpyHostToDevice), "memory");
  bench.measure("l2_load", {}, {1, 32}, 5000, 1, chase, lines);
  for (const int blocks : {1, all})
    for (const int bytes : {4096, 16384, 65536})
      bench.measure("l2_read", {{"blocks", blocks}, {"bytes", bytes}}, {blocks}, 2000, 1, read_l2,
                    static_cast<const char*>(bench.workspace), bytes);
  uint32_t* words = reinterpret_cast<uint32_t*>(bench.workspace);
  for (const int blocks : {1, all})
    bench.measure("store_and_fence", {{"blocks", blocks}}, {blocks}, 1000, 1, store_and_fence, words);
  bench.measure("grid_barrier", {{"blocks", all}}, {all, kThreads, 0, true}, 1000, 1, grid_barriers);
  // With all shared memory taken, a multiprocessor has one block.
  const Launch apart{all, 32, 0, true, most};
  for (const int other : {1, 2, all / 2, all - 1}) {
    const auto shape = [&](int fence, int clear) {
      return Shape{{"other", other}, {"fence", fence}, {"clear", clear}};
    };
    bench.measure("put_to_seen", shape(0, 0), apart, 1000, 2, put_to_seen<false, false>, words, other);
    bench.measure("put_to_seen", shape(0, 1), apart, 1000, 2, put_to_seen<false, true>, words, other);
    bench.measure("put_to_seen", shape(1, 0), apart, 1000, 2, put_to_seen<true, false>, words, other);
    bench.measure("put_to_seen", shape(1, 1), apart, 1000, 2, put_to_seen<true, true>, words, other);
  }
}

void measure_clusters(Bench& bench) {
  if (bench.device.major < 9) return;
  for (const int cluster : {2, 4, 8, 16}) {
    bench.measure("cluster_barrier", {{"blocks", cluster}}, {cluster, kThreads, cluster}, 5000, 1, cluster_barriers);
    for (const int registers : {0, 1})
      for (const int bytes : {registers ? 512 : 256, 1024, 2048, 4096}) {
        const int shared = 128 + 2 * cluster * bytes;
        if (shared > bench.shared_memory) continue;
        bench.measure("cluster_exchange", {{"blocks", cluster}, {"bytes", bytes}, {"registers", registers}},
                      {cluster, kThreads, cluster, false, shared}, 1000, 1,
                      registers ? cluster_exchange<true> : cluster_exchange<false>, cluster, bytes);
      }
  }
}

// `bytes`: of a publication. `rows` of a block's warps each receive all of it. `fence`: rounds from one to the next.
template <class E, int kWidth, bool kFences = false>
void measure_exchange(Bench& bench, int teams, int blocks, int groups, int rows) {
  constexpr bool kFloat = sizeof(E) == 4;
  const Plan plan = exchange_plan(teams, blocks, rows, groups, kWidth, kFloat);
  const SharedMemory memory = exchange_memory(plan, kFloat);
  if (teams * blocks > bench.device.multiProcessorCount || memory.total > bench.shared_memory) return;
  if (workspace_bytes(plan, memory) > int64_t(kWorkspaceBytes)) return;
  bench.measure("grid_exchange",
                {{"teams", teams},
                 {"blocks", blocks},
                 {"bytes", memory.state_size},
                 {"bits", 8 * int(sizeof(E))},
                 {"rows", rows},
                 {"fence", kFences ? 1 : kCleared}},
                {teams * blocks, kThreads, 0, true, bench.shared_memory},  // a block to a multiprocessor
                500, 1, grid_exchange<E, kWidth, kFences>, plan, bench.limit, bench.workspace);
}

// A layer's units in groups of 16: as many as those of an LSTM's h, or of its gates' gradients.
void measure_exchanges(Bench& bench, int teams, int blocks, int groups) {
  measure_exchange<Bfloat16, 1>(bench, teams, blocks, groups, 1);
  measure_exchange<Bfloat16, 1, true>(bench, teams, blocks, groups, 1);
  measure_exchange<Bfloat16, 4>(bench, teams, blocks, groups, 1);
  measure_exchange<Bfloat16, 4, true>(bench, teams, blocks, groups, 1);
  measure_exchange<float, 1>(bench, teams, blocks, groups, 1);
  measure_exchange<float, 4>(bench, teams, blocks, groups, 1);
  if (groups == blocks) return;  // no group for a second row
  measure_exchange<Bfloat16, 1>(bench, teams, blocks, groups, 2);
  measure_exchange<Bfloat16, 4>(bench, teams, blocks, groups, 2);
}

}  // namespace

int main(int count, char** arguments) {
  try {
    Bench bench(count - 1, arguments + 1);
    const int all = bench.device.multiProcessorCount;
    bench.sm_clock("sm_clock_first");
    measure_multiprocessor(bench);
    measure_grid(bench);
    measure_clusters(bench);
    measure_exchanges(bench, 1, 16, 32);
    measure_exchanges(bench, all / 16, 16, 32);
    for (const int blocks : {24, 48}) measure_exchanges(bench, 1, blocks, 48);
    measure_exchanges(bench, 1, 64, 64);
    measure_exchanges(bench, 1, all, all);
    bench.sm_clock("sm_clock_last");
    return bench.failed ? 1 : 0;
  } catch (const std::runtime_error& error) {
    Line("micro").add("error", std::string(error.what())).print();
    return 1;
  }
}
