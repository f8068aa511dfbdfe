// Runs a pass of the CPU kernels by a plan of our choice.
#pragma once

#include <thread>

#include "kernels.h"
#include "run.h"

namespace prnn::test {

// Runs a pass by that very plan, as the driver would, but in scratch memory as long as it
// must be and full of NaN.
template <class Pass>
void force(const Pass& pass, const cpu::Plan& plan) {
  const int64_t members = plan.batch_groups * plan.hidden_groups;
  constexpr bool kBackward = std::is_same_v<Pass, Backward>;
  const cpu::Kernels& kernels = cpu::best_kernels(pass.dtype);
  int64_t bytes;
  if constexpr (kBackward)
    bytes = kernels.backward_scratch(pass, plan, members);
  else
    bytes = kernels.forward_scratch(pass, plan, members);
  const size_t whole = size_t((bytes + 63) / 64 * 64);
  const std::unique_ptr<char, void (*)(void*)> scratch(static_cast<char*>(std::aligned_alloc(64, whole)), std::free);
  std::memset(scratch.get(), 0xFF, whole);
  std::vector<cpu::Progress> progress(static_cast<size_t>(members));
  const auto work = [&](int64_t rank) {
    cpu::Member member(rank, members, progress.data());
    if constexpr (kBackward)
      kernels.backward(pass, plan, scratch.get(), member);
    else
      kernels.forward(pass, plan, scratch.get(), member);
  };
  std::vector<std::thread> threads;
  for (int64_t rank = 1; rank < members; ++rank) threads.emplace_back(work, rank);
  work(0);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace prnn::test
