// The barriers of a block for what its cluster stores into its shared memory.
#pragma once

#include "primitives.cuh"
#include "wait.cuh"

namespace prnn::cuda {

// Publications use two buffers in turn, each with a barrier, which the stores into it complete.
class Arrivals {
 public:
  // `shared`: a block's shared memory, where the barriers stand first.
  PRNN_DEVICE_MEMBER Arrivals(const WaitLimit& limit, char* shared)
      : limit(limit), barriers(reinterpret_cast<uint64_t*>(shared)) {}

  // By all threads of the cluster, before any store. `bytes`: of each publication, into this block.
  PRNN_DEVICE_MEMBER void prepare(int bytes) {
    expected = bytes;
    if (thread() == 0) {
      barrier_init(barriers), barrier_init(barriers + 1);
      barrier_expect(barriers, expected), barrier_expect(barriers + 1, expected);
    }
    sync_cluster();
  }

  PRNN_DEVICE_MEMBER uint64_t* barrier(unsigned publication) const { return barriers + publication % 2; }

  // By all threads: waits until all bytes of a publication have arrived. Each publication in turn.
  PRNN_DEVICE_MEMBER void wait(unsigned publication) const {
    const int phase = static_cast<int>(publication / 2 % 2);
    const int next = computed_here(thread() == 0 ? expected : 0);  // not after the wait
    if (!barrier_test(barrier(publication), phase)) {
      Wait wait(limit);
      do
        if (wait.expired()) give_up(limit, static_cast<int>(publication), -1);
      while (!barrier_try(barrier(publication), phase));
    }
    if (next) barrier_expect(barrier(publication), next);  // for the one after the next
  }

 private:
  const WaitLimit& limit;
  uint64_t* barriers;
  int expected;
};

}  // namespace prnn::cuda
