// Networks with differentiable stacks or lists on the GPU (../stack_memory.h): the interface for the binding, and the
// sizes shared by the host and the kernels. Includes neither torch nor CUDA headers.
#pragma once

#include <string>

#include "../stack_memory.h"

namespace prnn::cuda {

constexpr int kMemoryWarps = 16;  // of a block, at most
constexpr int kParts = 8;         // lanes that share a sum

// Threads in whole warps, one warp for each memory and kParts lanes for each unit, up to the limit; a block runs one
// sample at a time through all steps.
struct MemoryPlan {
  int warps;
  int64_t blocks;
};
inline int memory_warps(const Memory& m) {
  const int64_t most = kMemoryWarps, needed = m.S > (m.H + 3) / 4 ? m.S : (m.H + 3) / 4;
  return static_cast<int>(needed < most ? needed : most);
}

// A block's shared memory, in elements from its start. With I = S*K numbers read and O = (A+1)*S logits, and the other
// way round in the backward pass, there are two matrices: `first`, [H][I+H] (H of them with weight_hh), and `second`,
// [O][H]. A row of the state (two of them, of consecutive steps) is multiplied by both, a vector of I by the first.
struct MemoryShared {
  int64_t wide, narrow, row;  // a row of either matrix; the cells of a memory
  int64_t first, second, vector, state;
  int64_t ring;                                  // [2][S][row]: the cells, or their gradients, of consecutive steps
  int64_t kept, kept_size;                       // [2]: what two consecutive steps read of global memory
  int64_t kept_actions, kept_output, kept_grad;  // of the backward pass, within `kept`, after the cells [S][row]
  int64_t total;

  PRNN_BOTH MemoryShared(const Memory& m, bool backward) {
    const int64_t reads = m.S * m.K, logits = (m.A + 1) * m.S;
    const int64_t in = backward ? logits : reads, out = backward ? reads : logits;
    wide = spread(in + (m.weight_hh ? m.H : 0)), narrow = spread(m.H), row = m.N | 1;
    first = 0, second = m.H * wide, vector = second + out * narrow, state = vector + in, ring = state + 2 * m.H;
    kept = ring + 2 * m.S * row;
    kept_actions = m.S * row, kept_output = kept_actions + logits, kept_grad = kept_output + m.H;
    kept_size = backward ? kept_grad + m.H : m.H;
    total = kept + 2 * kept_size;
  }
  // At least n, such that kParts elements of each of 32 / kParts consecutive rows are in different banks.
  PRNN_BOTH static int64_t spread(int64_t n) { return ((n + kParts - 1) / kParts | 1) * kParts; }
  PRNN_BOTH int64_t bytes(const Memory& m) const { return total * (m.doubles ? 8 : 4); }
};

// Why a block with `bytes` of shared memory cannot run both passes, as a sentence; empty if it can.
inline std::string memory_refusal(const Memory& m, int64_t bytes) {
  constexpr int64_t kMost = 1 << 16;  // more than fit; keeps the sizes below from overflowing
  std::string needed = "far more";
  if (m.H < kMost && m.S < kMost && m.N < kMost) {
    const int64_t forward = MemoryShared(m, false).bytes(m), backward = MemoryShared(m, true).bytes(m);
    const int64_t most = forward > backward ? forward : backward;
    if (most <= bytes) return "";
    needed = std::to_string((most + 1023) / 1024) + " KiB";
  }
  return std::to_string(m.H) + " units with " + std::to_string(m.S) + " memories of " + std::to_string(m.N) +
         " cells need " + needed + " of shared memory, a block of this GPU has " + std::to_string(bytes / 1024) +
         " KiB";
}

// One pass on the current device, whose index is `device`. Asynchronous; throws std::runtime_error if the pass does not
// fit, or with CUDA's message if the launch fails.
void memory_forward(const MemoryForward& pass, int device, void* stream);
void memory_backward(const MemoryBackward& pass, int device, void* stream);

}  // namespace prnn::cuda
