// The kernels of a cell written in Python. prnn/codegen/gpu.py writes a file for each, which is compiled on the user's
// machine: it includes this one, defines the cell's struct in `user`, and has one kernel.
#pragma once

#include "backward.cuh"
#include "forward.cuh"

namespace prnn::cuda {

// The functions a struct may call, of V = float, with the special cases of torch's. tanh_of and sigmoid_of are those of
// `quick` or of `exact`.
namespace user {

template <class V>
PRNN_DEVICE V constant_of(float x) {
  return x;
}
PRNN_DEVICE float abs_of(float x) { return fabsf(x); }
PRNN_DEVICE float min_of(float x, float y) { return x < y || x != x ? x : y; }
PRNN_DEVICE float max_of(float x, float y) { return x > y || x != x ? x : y; }
PRNN_DEVICE float sqrt_of(float x) { return sqrtf(x); }
PRNN_DEVICE float floor_of(float x) { return floorf(x); }
PRNN_DEVICE float round_of(float x) { return rintf(x); }
PRNN_DEVICE float trunc_of(float x) { return truncf(x); }
PRNN_DEVICE float exp_of(float x) { return expf(x); }
PRNN_DEVICE float expm1_of(float x) { return expm1f(x); }
PRNN_DEVICE float log_of(float x) { return logf(x); }
PRNN_DEVICE float log1p_of(float x) { return log1pf(x); }
PRNN_DEVICE float sin_of(float x) { return sinf(x); }
PRNN_DEVICE float cos_of(float x) { return cosf(x); }
PRNN_DEVICE float atan_of(float x) { return atanf(x); }
PRNN_DEVICE float erf_of(float x) { return erff(x); }
PRNN_DEVICE float erfc_of(float x) { return erfcf(x); }
PRNN_DEVICE float pow_of(float x, float y) { return powf(x, y); }
PRNN_DEVICE float fmod_of(float x, float y) { return fmodf(x, y); }

}  // namespace user

// The pass of a direction, of the head that the grid's row stands for.
template <class PassOf, class Pass>
PRNN_DEVICE void run_user_kernel(const Plan& plan, const WaitLimit& limit, const Directions<Pass>& passes,
                                 void* workspace) {
  const int team = plan.team(block());
  PassOf(plan, team, passes.first_head + grid_row(), limit, passes.of[team & (plan.directions - 1)], workspace).run();
}

// Of a file's one kernel: the number of resident fragments.
template <Scheme kScheme, bool kFloat32, bool kBackward, int kShape, int kResident>
struct UserModel {
  static constexpr CellModel model() {
    CellModel model{};
    model.any_scheme = true;
    model.resident[static_cast<int>(kScheme)][kFloat32][kBackward][kShape] = kResident;
    return model;
  }
  static constexpr CellModel kModel = model();
};

}  // namespace prnn::cuda

#define PRNN_CELL_FUNCTION \
  template <class V>       \
  static PRNN_DEVICE_MEMBER
