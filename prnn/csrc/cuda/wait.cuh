// A wait in a kernel that ends: in time, or with a record of what it waited for and a trap.
//
// It costs nothing as long as nobody waits, and who waits pays two instructions a poll: the clock is looked at once in
// thousands of polls, and only that look begins to count the time.
#pragma once

#include "primitives.cuh"
#include "wait.h"

namespace prnn::cuda {

// Never inlined, and never returns: the registers of who calls it need not be kept.
[[noreturn]] PRNN_COLD void give_up(const Patience& patience, int publication, int piece) {
  Fault& fault = *patience.fault;
  if (first_to_claim(&fault.state, Fault::none, Fault::claimed)) {
    fault.block = block(), fault.publication = publication, fault.piece = piece;
    fault.launch = patience.launch;
    tell_host(&fault.state, Fault::complete);
  } else {
    while (told(&fault.state) != Fault::complete) {  // a trap of another thread would cut the record short
    }
  }
  trap();
}

class Wait {
 public:
  PRNN_DEVICE_MEMBER explicit Wait(const Patience& patience) : patience(patience), left(patience.polls) {}

  // After each poll in vain.
  PRNN_DEVICE_MEMBER void in_vain(int publication, int piece) {
    if (--left > 0) return;
    left = patience.polls;
    const int32_t now = static_cast<int32_t>(nanoseconds() >> kTickShift);
    if (since == 0) since = now;
    if (now - since >= patience.ticks) give_up(patience, publication, piece);
  }

 private:
  const Patience& patience;
  int32_t left, since = 0;
};

}  // namespace prnn::cuda
