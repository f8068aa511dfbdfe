// The parts of a backward pass: samples whose gradients of the weights are summed on their own, and added up at the
// end. Threads that have a part each meet at no barrier in between, and read nothing that another one wrote.
#pragma once

#include <vector>

#include "../layer_args.h"
#include "scratch.h"
#include "team.h"

namespace prnn::cpu {

// A backward pass over some samples of a batch: every pointer is to the first of them, and B their number.
struct BackwardPart : Backward {
  int64_t batch;    // samples of the batch: between two steps of `saved` and of `resets`
  bool float_sums;  // the gradients of the weights are floats, whatever the dtype
};

// The whole pass as one part.
inline BackwardPart whole(const Backward& pass) { return {pass, pass.B, false}; }

// The number of parts, which the layer alone decides: the sums have the same bits on any number of threads.
int64_t parts_of(const Layer& layer);

// A backward pass in parts.
class Parts {
 public:
  Parts(const Backward& pass, int64_t count);

  const std::vector<BackwardPart>& all() const { return parts_; }
  // One member's share of adding up the parts' gradients, after the last of them.
  void add_up(const Member& member) const;

 private:
  struct Sum {
    void* place;
    const float* first;  // of the first part; the other parts' are `stride_` apart
    int64_t count;
    bool is_float;
  };

  std::vector<BackwardPart> parts_;
  std::vector<Sum> sums_;
  int64_t stride_ = 0;
  Scratch memory_;
};

}  // namespace prnn::cpu
