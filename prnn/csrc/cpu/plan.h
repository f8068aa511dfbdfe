// How a layer is shared out over the threads of a team: a cost model, not a table of cases.
#pragma once

#include "driver.h"

namespace prnn::cpu {

// The team is a grid of batch_groups x hidden_groups members. Members of one batch group share its samples and own
// some of the hidden units each, meeting once a step; batch groups have nothing to do with each other but for the
// weights' gradients. Member `rank` is number rank % hidden_groups of group rank / hidden_groups.
struct Plan {
  int64_t batch_groups, hidden_groups;
  int64_t chunk;   // steps between two phases of large products: the input's projection, the weights' gradients
  double seconds;  // what the model expects of the serial part
};

// For at most `members` threads, vectors of `lanes` floats.
Plan make_plan(const Layer& layer, int64_t lanes, int64_t members, bool backward);

}  // namespace prnn::cpu
