// All kernels, written once and compiled once per instruction set.
// A kernel file sets the target, defines PRNN_ISA, PRNN_ISA_NAME, PRNN_LANES, where the target has them PRNN_AVX (2 or
// 512) and PRNN_AVX512_BF16 (which leaves the kernels of bfloat16 alone), optionally PRNN_BF16_PAIRS, and includes
// this. Nothing here may instantiate a template or an inline function of the standard library: the linker could pick
// that copy, compiled for a wide instruction set, for the whole program.

namespace prnn::cpu::PRNN_ISA {

#include "simd.h"
// After simd.h: the cells compute with its functions.
#include "../cells.h"
#include "pointwise.h"
#include "tile.h"
// After tile.h: the passes are made of its products.
#include "shape.h"
// After shape.h.
#include "blocks.h"
#include "spikes.h"
// After blocks.h.
#include "backward.h"
#include "forward.h"
#include "memory_run.h"
// After memory_run.h.
#include "memory_backward.h"
#include "memory_forward.h"

template <class E, class Element>
static const Pointwise& builtin(Cell cell) {
  static constexpr Pointwise kAll[] = {
#define PRNN_POINTWISE(Struct, name) kPointwise<Struct, E, Element>,
      PRNN_CELLS(PRNN_POINTWISE)
#undef PRNN_POINTWISE
  };
  return kAll[static_cast<int64_t>(cell)];
}

template <template <class, class> class Run, class E, class Op, class Pass, class Use>
static void of_type(const Pass& pass, const Plan& plan, int64_t members, char* scratch, const Pointwise* user,
                    Use use) {
  Arena arena(scratch);
  Run<E, Op> run(pass, plan, members, arena, pass.user ? *user : builtin<E, typename Op::Element>(pass.cell));
  use(run, arena);
}

// Calls use(run, arena) with the run for the pass.
template <template <class, class> class Run, class Pass, class Use>
static void of_pass(const Pass& pass, const Plan& plan, int64_t members, char* scratch, Use use) {
  const UserCell* user = pass.user;
#ifndef PRNN_AVX512_BF16
  if (pass.dtype == Dtype::float32)
    return of_type<Run, float, Fp32>(pass, plan, members, scratch, user ? &user->pointwise : nullptr, use);
#endif
#ifdef PRNN_BF16_PAIRS
  // A pair must not straddle two rows.
  if (pass.I % 2 == 0 && pass.H % 2 == 0 && recurrent_units(pass) % 2 == 0)
    return of_type<Run, Bfloat16, Bf16Pairs>(pass, plan, members, scratch, user ? &user->pairs : nullptr, use);
#endif
  of_type<Run, Bfloat16, Fp32>(pass, plan, members, scratch, user ? &user->pointwise : nullptr, use);
}

static int64_t forward_scratch(const Forward& pass, const Plan& plan, int64_t members) {
  int64_t bytes = 0;
  of_pass<ForwardRun>(pass, plan, members, nullptr, [&](auto&, Arena& arena) { bytes = arena.used(); });
  return bytes;
}

static int64_t backward_scratch(const BackwardPart& pass, const Plan& plan, int64_t members) {
  int64_t bytes = 0;
  of_pass<BackwardRun>(pass, plan, members, nullptr, [&](auto&, Arena& arena) { bytes = arena.used(); });
  return bytes;
}

static void forward(const Forward& pass, const Plan& plan, char* scratch, Member& member) {
  of_pass<ForwardRun>(pass, plan, member.size, scratch, [&](auto& run, Arena&) { run.run(member); });
}

static void backward(const BackwardPart& pass, const Plan& plan, char* scratch, Member& member) {
  of_pass<BackwardRun>(pass, plan, member.size, scratch, [&](auto& run, Arena&) { run.run(member); });
}

#ifdef PRNN_AVX512_BF16
static constexpr Kernels kKernels = {PRNN_ISA_NAME, kLanes,   forward_scratch, backward_scratch,
                                     forward,       backward, nullptr,         nullptr};
#else
template <template <class> class Run, class E, class Pass>
static int64_t memory_of(const Pass& pass, int64_t b0, int64_t b1, char* scratch) {
  Arena arena(scratch);
  Run<E> run(pass, b0, b1, arena);
  if (scratch) run.run();
  return arena.used();
}

template <template <class> class Run, class Pass>
static int64_t memory(const Pass& pass, int64_t b0, int64_t b1, char* scratch) {
  return pass.doubles ? memory_of<Run, double>(pass, b0, b1, scratch) : memory_of<Run, float>(pass, b0, b1, scratch);
}

static constexpr Kernels kKernels = {PRNN_ISA_NAME, kLanes,   forward_scratch,          backward_scratch,
                                     forward,       backward, memory<MemoryForwardRun>, memory<MemoryBackwardRun>};
#endif

}  // namespace prnn::cpu::PRNN_ISA
