// The exchanges that benchmarks/gpu_check/micro.cu measures, on the emulated GPU: what is received is what was sent.
//
//     test_exchange_rounds [thin [seed]]      all cases, other schedules
#include "../../benchmarks/gpu_check/exchange_rounds.cuh"

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "planner.h"

namespace {

int cases = 0, failures = 0;
uint64_t seed = 1;

void run(const std::string& name, emulation::Launch launch, int rounds, const std::function<void(const Run&)>& body) {
  ++cases;
  uint32_t signal = 0;
  launch.seed = seed * 7919 + uint64_t(cases);
  std::string error = emulation::launch(launch, [&] { body({rounds, &signal, nullptr}); });
  if (error.empty() && signal) error = "what came was wrong";
  if (!error.empty()) std::printf("%s: %s\n", name.c_str(), error.c_str()), ++failures;
}

// Three groups in two blocks: one has a row of warps, or half of its warps, without a group.
template <class E, int kWidth, bool kFences>
void test_grid(int teams, int row_warps) {
  constexpr bool kFloat = sizeof(E) == 4;
  const Plan plan = exchange_plan(teams, 2, row_warps, 3, kWidth, kFloat);
  const SharedMemory memory = exchange_memory(plan, kFloat);
  std::vector<Words4> workspace(size_t(workspace_bytes(plan, memory)) / sizeof(Words4));
  std::memset(static_cast<void*>(workspace.data()), 0xFF, workspace.size() * sizeof(Words4));
  Fault fault{};
  const WaitLimit limit{&fault, 1, 1, {}};
  run("grid, " + std::to_string(row_warps) + " rows of warps, width " + std::to_string(kWidth) + ", " +
          std::to_string(8 * sizeof(E)) + " bits",
      {teams * plan.blocks, kThreads, 1, memory.total, 0}, kSlots + 3,  // so that slots are used again
      [&](const Run& run) { grid_exchange_rounds<E, kWidth, kFences>(run, plan, limit, workspace.data()); });
}

template <bool kRegisters>
void test_cluster(int blocks, int bytes) {
  run("cluster of " + std::to_string(blocks) + " blocks, " + std::to_string(bytes) + " bytes",
      {blocks, kThreads, blocks, 128 + 2 * blocks * bytes, 0}, 5,
      [&](const Run& run) { cluster_exchange_rounds<kRegisters>(run, blocks, bytes); });
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 2) seed = std::strtoull(argv[2], nullptr, 10);
  test_grid<Bfloat16, 1, false>(2, 1), test_grid<Bfloat16, 4, false>(1, 2);
  test_grid<Bfloat16, 4, true>(1, 1), test_grid<float, 1, false>(1, 1);
  test_cluster<false>(4, 256), test_cluster<true>(4, 512), test_cluster<true>(2, 4096);
  std::printf(failures ? "FAILED: %d failures\n" : "all right, %d cases\n", failures ? failures : cases);
  return failures ? 1 : 0;
}
