// Tests of the CPU kernels without torch: main [thin [without-threads]], where `thin` takes one case in so many.
#include "driver.h"
#include "tests.h"

int main(int argc, char** argv) {
  prnn::test::Effort effort;
  if (argc > 1) effort.thin = std::max<int64_t>(1, std::atoll(argv[1]));
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  std::printf("instruction set: %s\n", prnn::cpu::instruction_set());
  prnn::cpu::chooses_by_trial = false;
  prnn::test::test_reference();
  prnn::test::test_math(effort);
  prnn::test::test_simd_math(effort);
  if (argc < 3) prnn::test::test_threads(effort);
  prnn::test::test_trials();
  prnn::test::test_layers(effort);
  prnn::test::test_memory(effort);
  std::printf(prnn::test::failures() ? "FAILED: %d failures\n" : "all right\n", prnn::test::failures());
  return prnn::test::failures() ? 1 : 0;
}
