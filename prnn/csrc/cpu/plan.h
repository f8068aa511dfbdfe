// The partition of a layer over the threads of a team, selected by a cost model.
#pragma once

#include "driver.h"

namespace prnn::cpu {

// The team is a grid of batch_groups x hidden_groups members. Members of one batch group share its samples and each own
// a part of the hidden units, with one barrier a step; batch groups are independent except for the weights' gradients.
// Member `rank` is number rank % hidden_groups of group rank / hidden_groups.
struct Plan {
  int64_t batch_groups, hidden_groups;
  int64_t chunk;   // steps between two phases of large matmuls: the input projection, the weights' gradients
  double seconds;  // the serial part, according to the cost model
};

// For at most `members` threads, vectors of `lanes` floats.
Plan make_plan(const Layer& layer, int64_t lanes, int64_t members, bool backward);

}  // namespace prnn::cpu
