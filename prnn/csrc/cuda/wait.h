// Waits that end: what a kernel is told of how long it may wait, and what it leaves behind when that was not enough.
// Knows neither torch nor CUDA's headers.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "../layer_args.h"
#include "plan.h"

namespace prnn::cuda {

// A launch, as far as a person is told of it. The host writes it, and a kernel copies it into its record.
struct Launched {
  Cell cell;
  Dtype dtype;
  Regime regime;
  bool backward;
  int blocks;
  int64_t T, B, H;
  double wait_seconds;
};

// The record of the first wait that was given up, in host memory that outlives the device's context.
struct Fault {
  enum State : unsigned { none, claimed, complete };
  unsigned state;
  int block;
  int publication;  // 0: the state the pass begins with
  int piece;        // of 16 bytes, counted from the start of the publication; -1 where all of it is waited for at once
  Launched launch;
};

// Time goes by ticks of 2^20 ns: 32 bits last for days, and a clock that moves once a millisecond is good enough.
constexpr int kTickShift = 20;
constexpr int32_t kForever = INT32_MAX;  // 26 days

// What a kernel is told.
struct Patience {
  Fault* fault;
  int32_t ticks;  // the longest wait; 0: it ends at the first look at the clock
  int32_t polls;  // from one look at the clock to the next
  Launched launch;
};

// By PRNN_CUDA_WAIT_SECONDS, 2 where it is not set. Throws std::runtime_error where that is no number of seconds.
Patience patience_of(const Layer& layer, const Plan& plan, bool backward);

// "lstm bfloat16 T=1024 B=16 H=768, forward, grid regime, 96 blocks"
std::string describe(const Launched& launch);

// This process's record, null before its first launch; and what it says, as a sentence for the user, or nothing.
extern std::atomic<Fault*> record;
std::string fault();

}  // namespace prnn::cuda
