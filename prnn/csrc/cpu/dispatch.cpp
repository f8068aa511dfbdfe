// Which instruction set runs, and how weights are packed for it.
#include <cstdlib>
#include <cstring>

#include "rnn.h"

namespace prnn::cpu {

void RnnKernels::pack(const float* weight, int64_t H, bool transpose, float* packed) const {
  for (int64_t panel = 0; panel < panels(H); ++panel)
    for (int64_t k = 0; k < H; ++k)
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const int64_t unit = panel * lanes + lane;
        const float value = unit >= H ? 0.0f : transpose ? weight[k * H + unit] : weight[unit * H + k];
        packed[(panel * H + k) * lanes + lane] = value;
      }
}

static const RnnKernels& choose() {
  // PRNN_CPU_ISA names the widest set to use; Python refuses names that are none of the three.
  const char* asked = std::getenv("PRNN_CPU_ISA");
  const auto at_most = [asked](const char* isa) { return asked && !std::strcmp(asked, isa); };
#if defined(__x86_64__)
  const bool narrow = at_most("portable");
  if (!narrow && !at_most("avx2") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return avx512_kernels();
  if (!narrow && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2_kernels();
#endif
  return portable_kernels();
}

const RnnKernels& best_kernels() {
  static const RnnKernels& kernels = choose();
  return kernels;
}

}  // namespace prnn::cpu
