#include <initializer_list>
#include <stdexcept>
#include <string>

#include "recurrence.h"

namespace prnn::cuda {

namespace {

void check_steps(std::initializer_list<int64_t> steps) {
  for (const int64_t step : steps)
    if (step < -INT32_MAX || step > INT32_MAX)
      throw std::runtime_error("prnn: a step of a sequence is " + std::to_string(step) +
                               " elements, and CUDA kernels take up to " + std::to_string(INT32_MAX));
}

}  // namespace

void check_steps(const Forward& pass) {
  check_steps({pass.x.step, pass.output.step, pass.hidden.step, pass.inputs.step});
}
void check_steps(const SerialBackward& pass) {
  check_steps({pass.output.step, pass.hidden.step, pass.grad_output.step, pass.grad_x.step, pass.inputs.step,
               pass.grad_inputs.step});
}

std::string describe(const Plan& plan, const SharedMemory& shared, int registers) {
  const std::string heads = plan.heads > 1 ? std::to_string(plan.heads) + " x " : "";
  return std::string(name_of(plan.regime)) + " regime, " + heads + std::to_string(plan.teams) + " x " +
         std::to_string(plan.blocks) + " blocks of " + std::to_string(kThreads) + " threads, " +
         std::to_string(registers) + " registers a thread, " + std::to_string((shared.total + 1023) / 1024) +
         " KiB of shared memory a block";
}

}  // namespace prnn::cuda
