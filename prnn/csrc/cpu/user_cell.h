// A cell that is not of the library: the interface of a shared object compiled for a cell written in Python, which
// prnn/codegen writes. It exports `extern "C" const prnn::UserCell prnn_user_cell`.
#pragma once

#include "../cell_table.h"
#include "pointwise_args.h"

namespace prnn {

struct UserCell {
  const char* headers;  // the hash of the headers it was compiled with (prnn/codegen/headers.py)
  const char* isa;      // the kernels it belongs to: Kernels::isa
  bool bfloat16;        // x is bfloat16; else float32
  bool spikes;          // h is 0 or 1 after a step
  CellRow row;
  cpu::Pointwise pointwise;  // h in scratch memory is float
  cpu::Pointwise pairs;      // bfloat16, where the kernels multiply pairs; null elsewhere
};

}  // namespace prnn
