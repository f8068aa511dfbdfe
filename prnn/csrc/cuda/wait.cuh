// A wait with a timeout, in a kernel: on expiry it records what it waited for and traps.
//
// It has no cost without waiting, and two instructions a poll while waiting: the clock is read once in thousands of
// polls, and the first reading starts the time.
#pragma once

#include "primitives.cuh"
#include "wait.h"

namespace prnn::cuda {

// Never inlined, and never returns: the caller's registers need not be preserved.
[[noreturn]] PRNN_COLD void give_up(const WaitLimit& limit, int publication, int piece) {
  Fault& fault = *limit.fault;
  if (first_to_claim(&fault.state, Fault::none, Fault::claimed)) {
    fault.block = block(), fault.publication = publication, fault.piece = piece;
    fault.launch = limit.launch;
    store_to_host(&fault.state, Fault::complete);
  } else {
    while (load_from_host(&fault.state) != Fault::complete) {  // a trap of another thread would truncate the record
    }
  }
  trap();
}

class Wait {
 public:
  PRNN_DEVICE_MEMBER explicit Wait(const WaitLimit& limit) : limit(limit), left(limit.polls) {}

  // After each failed poll: whether to give up.
  PRNN_DEVICE_MEMBER bool expired() {
    if (--left > 0) return false;
    left = limit.polls;
    const int32_t now = static_cast<int32_t>(nanoseconds() >> kTickShift);
    if (since == 0) since = now;
    return now - since >= limit.ticks;
  }

 private:
  const WaitLimit& limit;
  int32_t left, since = 0;
};

}  // namespace prnn::cuda
