// Runs a pass of the CPU kernels by a plan of our choice.
#pragma once

#include <thread>

#include "kernels.h"
#include "run.h"

namespace prnn::test {

// Runs a forward pass or a part of a backward pass by that very plan, as the driver would, but in scratch memory as
// long as it must be and full of NaN. A plan without a chunk gets the driver's.
template <class Part>
void force_part(const Part& part, cpu::Plan plan) {
  constexpr bool kBackward = std::is_same_v<Part, cpu::BackwardPart>;
  const int64_t members = plan.batch_groups * plan.hidden_groups;
  const cpu::Kernels& kernels = cpu::best_kernels(part.dtype);
  if (!plan.chunk) plan.chunk = cpu::make_plan(part, kernels.lanes, 1, kBackward).chunk;
  int64_t bytes;
  if constexpr (kBackward)
    bytes = kernels.backward_scratch(part, plan, members);
  else
    bytes = kernels.forward_scratch(part, plan, members);
  const size_t whole = size_t((bytes + 63) / 64 * 64);
  const std::unique_ptr<char, void (*)(void*)> scratch(static_cast<char*>(std::aligned_alloc(64, whole)), std::free);
  std::memset(scratch.get(), 0xFF, whole);
  std::vector<cpu::Progress> progress(static_cast<size_t>(members));
  const auto work = [&](int64_t rank) {
    cpu::Member member(rank, members, progress.data());
    if constexpr (kBackward)
      kernels.backward(part, plan, scratch.get(), member);
    else
      kernels.forward(part, plan, scratch.get(), member);
  };
  std::vector<std::thread> threads;
  for (int64_t rank = 1; rank < members; ++rank) threads.emplace_back(work, rank);
  work(0);
  for (std::thread& thread : threads) thread.join();
}

inline void force(const Forward& pass, const cpu::Plan& plan) { force_part(pass, plan); }

// All parts of the pass.
inline void force(const Backward& pass, const cpu::Plan& plan) {
  const cpu::Parts parts(pass, cpu::parts_of(pass));
  for (const cpu::BackwardPart& part : parts.all()) force_part(part, plan);
  cpu::Progress progress;
  if (parts.all().size() > 1) parts.add_up(cpu::Member(0, 1, &progress));
}

}  // namespace prnn::test
