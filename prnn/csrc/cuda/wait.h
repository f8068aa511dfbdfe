// Timeouts of waits in kernels: the limit passed to a kernel, and its record of an expired one. timeouts.h is the
// host's part.
#pragma once

#include <cstdint>

#include "../layer_args.h"
#include "plan.h"

namespace prnn::cuda {

// The description of a launch for messages. The host writes it, and a kernel copies it into its record.
struct Launched {
  const char* cell;  // in host memory
  Dtype dtype;
  Regime regime;
  bool backward;
  int blocks;
  int64_t T, B, H;
  double wait_seconds;
};

// The record of the first expired wait, in host memory that outlives the device's context.
struct Fault {
  enum State : unsigned { none, claimed, complete };
  unsigned state;
  int block;
  int publication;  // 0: the state the pass begins with, backward the last step's gradients
  int piece;        // of 16 bytes, from the start of the publication; -1 for a wait for the whole publication
  Launched launch;
};

// The unit of time is a tick of 2^20 ns: 32 bits last for days, and a clock resolution of a millisecond suffices.
constexpr int kTickShift = 20;
constexpr int32_t kForever = INT32_MAX;  // 26 days

// The kernel argument.
struct WaitLimit {
  Fault* fault;
  int32_t ticks;  // the timeout; 0: expires at the first reading of the clock
  int32_t polls;  // between two readings of the clock
  Launched launch;
};

}  // namespace prnn::cuda
