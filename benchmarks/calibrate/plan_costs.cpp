// Evaluates the CUDA kernels' cost model (prnn/csrc/cuda/planner.cpp) for plans under sets of constants. Built and run
// by benchmarks/calibrate/cost_model.py. Reads the number of plans and of sets of constants; a line for each plan:
//     cell dtype backward clock_ghz regime shape row_warps blocks directions teams tiles columns groups k_groups tf32
// all as numbers, then the sets, in the order of costs.h. Prints a line for each set: microseconds of each plan.
#include <cstdio>
#include <cstring>
#include <iostream>
#include <vector>

#include "costs.h"
#include "planner.h"

namespace {

using namespace prnn;
using namespace prnn::cuda;

struct Question {
  int cell, dtype;
  bool backward;
  Device device;
  Plan plan;
};

std::istream& operator>>(std::istream& in, Question& question) {
  int regime = 0;
  Plan& plan = question.plan;
  in >> question.cell >> question.dtype >> question.backward >> question.device.clock_ghz >> regime >> plan.shape >>
      plan.row_warps >> plan.blocks >> plan.directions >> plan.teams >> plan.tiles >> plan.columns >> plan.groups >>
      plan.k_groups >> plan.tf32;
  plan.regime = static_cast<Regime>(regime), plan.heads = 1;
  const bool float32 = static_cast<Dtype>(question.dtype) == Dtype::float32;
  const int G = static_cast<int>(gates(static_cast<Cell>(question.cell)));
  plan.scheme = scheme_of(plan.regime, question.backward, G, float32);
  return in;
}

}  // namespace

int main() {
  size_t plans = 0, sets = 0;
  std::cin >> plans >> sets;
  std::vector<Question> questions(plans);
  for (Question& question : questions) std::cin >> question;
  for (size_t i = 0; i < sets; ++i) {
    constexpr size_t kCount = sizeof(Costs) / sizeof(double);
    double values[kCount];
    for (double& value : values) std::cin >> value;
    if (!std::cin) return 2;
    Costs costs;
    std::memcpy(&costs, values, sizeof(costs));
    for (const Question& question : questions) {
      const Recurrence of{model_of(static_cast<Cell>(question.cell)),
                          static_cast<Dtype>(question.dtype),
                          0,
                          0,
                          question.backward,
                          false};  // of any size: the plan has them
      std::printf("%.17g ", step_microseconds(question.plan, of, question.device, costs));
    }
    std::printf("\n");
  }
}
