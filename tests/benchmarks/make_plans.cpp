// Plans of an H100 for test_calibrate.py, which builds and runs it. A line of input is
//     cell dtype B H backward tf32 directions multiprocessors regime plan
// with numbers (0 multiprocessors: all), and PRNN_CUDA_REGIME and PRNN_CUDA_PLAN as they would be set, "-" for neither;
// a line of output is the plan as JSON, or why it was refused. The first line of output is the device.
#include <exception>
#include <iostream>
#include <string>

#include "plan_text.h"

int main() {
  using namespace prnn;
  using namespace prnn::cuda;
  const Device h100{132, 227 << 10, {66, 32, 16, 7}, 1.755};
  std::cout << json_of(h100) << "\n";
  int cell = 0, dtype = 0, directions = 0, multiprocessors = 0;
  int64_t B = 0, H = 0;
  bool backward = false, tf32 = false;
  std::string regime, plan;
  while (std::cin >> cell >> dtype >> B >> H >> backward >> tf32 >> directions >> multiprocessors >> regime >> plan) {
    try {
      const PlanFilter filter = plan_filter(regime == "-" ? "" : regime.c_str(), plan == "-" ? "" : plan.c_str());
      const Recurrence of{model_of(static_cast<Cell>(cell)), static_cast<Dtype>(dtype), B, H, backward, tf32};
      std::cout << json_of(make_plan(of, directions, limited(h100, multiprocessors), filter)) << "\n";
    } catch (const std::exception& error) {
      std::cout << error.what() << "\n";
    }
  }
}
