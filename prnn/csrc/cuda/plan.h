// The partition of a recurrence over a GPU: all sizes shared by the kernels and the host. planner.h chooses plans.
//
// Letters: T time steps, B batch, H hidden size, G gates. A group is 16 hidden units, a fragment 16 x 16 weights; a
// tile is a set of samples (columns) that one team of blocks runs through all T steps. Where W_hh consists of diagonal
// blocks, heads of K units, each is a recurrence of its own, with teams of its own.
#pragma once

#include <cstdint>

#include "../layer_args.h"
#include "cuda_cells.h"

namespace prnn::cuda {

constexpr int kWarps = 8, kThreads = 32 * kWarps;   // of a block: 255 registers a thread, all of a multiprocessor's
constexpr int kGroup = 16;                          // hidden units
constexpr int kCleared = 8, kSlots = 3 * kCleared;  // publications in global memory: exchange.cuh

enum class Regime : int { block, cluster, grid };
inline const char* name_of(Regime regime) {
  return regime == Regime::block ? "block" : regime == Regime::cluster ? "cluster" : "grid";
}

PRNN_BOTH constexpr Scheme scheme_of(Regime regime, bool backward, int G, bool float32) {
  if (regime == Regime::grid) return Scheme::grid;
  return regime == Regime::cluster && backward && G * (float32 ? 4 : 2) > 4 ? Scheme::sums : Scheme::local;
}

// The compile-time sizes of a kernel: groups of units of a warp, and columns. Where sums are exchanged, a warp's rows
// are of all units, not only of its block's.
struct Shape {
  int groups, columns;
};
// Tensor cores need multiples of eight columns; exact float32 products are cheap for few columns. Without a product
// there is one shape.
PRNN_BOTH constexpr Shape shape_of(Scheme scheme, bool float32, int index) {
  if (scheme == Scheme::units) return {kWarps, 2 * kWarps};
  const int columns = float32 ? (index == 1 ? 8 : 2) : (index == 1 ? 16 : 8);
  return {scheme == Scheme::sums ? (index == 2 ? 6 : 4) : (index == 2 ? 2 : 1), columns};
}

// Tiles of 16 rows that a warp multiplies: the gates of its units; in the backward pass, the units themselves.
PRNN_BOTH constexpr int row_tiles(int G, bool backward, int groups) { return (backward ? 1 : G) * groups; }

// The pointwise work of a row of warps comes in items, of a group and two columns: of an item a lane has a unit of one
// column. The maximum for one warp, whose registers hold their state: more than one gives a block more units, so that
// more tiles run side by side; on the grid, where loads in flight take registers too, it costs more than it gives.
// Where sums are exchanged, a block of 8 columns has 32 units and all registers for weights, or more units. Without a
// product any warp takes any item of its block, as it does where sums are exchanged.
PRNN_BOTH constexpr int items(int groups, int columns) { return groups * ((columns + 1) / 2); }
PRNN_BOTH constexpr int most_items(Scheme scheme, int shape_index) {
  return scheme == Scheme::local || (scheme == Scheme::sums && shape_index != 0) ? 2 : 1;
}

// Without a product nothing in a step takes longer than a load from global memory, so that the inputs of several steps,
// of `loads` values of a unit each, are loaded together, as many steps ahead. More than 128 registers a thread would
// leave room for one block on a multiprocessor.
PRNN_BOTH constexpr int steps_ahead(int loads) { return loads > 12 ? 1 : loads > 6 ? 2 : 4; }

struct Plan {
  Regime regime;
  Scheme scheme;
  int shape;       // index for shape_of
  int row_warps;   // a block's warps are row_warps x k_warps: rows of the product, slices of its sum
  int blocks;      // of a team
  int directions;  // that run side by side: 1 or 2 passes of one shape
  int heads;       // that run side by side, one row of the kernel's grid each
  int teams;       // of a head, at work at a time, of all directions
  int tiles;       // of the batch, for each direction
  int columns;     // samples of a tile
  int groups;      // of units, of a head; without heads, of the layer
  int k_groups;  // the product's sum, in groups: of h, or of the gates' gradients; where sums are exchanged, of a block
  bool tf32;
  double microseconds;  // of a step, according to the cost model

  PRNN_BOTH int k_warps() const { return row_warps == 1 ? 8 : row_warps == 2 ? 4 : row_warps == 4 ? 2 : 1; }
  // Block `rank` of a team has groups first_group(rank) to first_group(rank + 1), at least one: a block without a share
  // would not be waited for, and others could overwrite what it reads.
  PRNN_BOTH int first_group(int rank) const { return rank * groups / blocks; }
  PRNN_BOTH int most_groups() const { return (groups + blocks - 1) / blocks; }  // of a block
  PRNN_BOTH int pairs() const { return (columns + 1) / 2; }                     // of columns
  PRNN_BOTH int team(int block) const { return block / blocks; }
  PRNN_BOTH int warp_k_groups() const { return (k_groups + k_warps() - 1) * row_warps / kWarps; }

  // Whether the warps of a block have room for its rows and its items.
  bool fits(bool float32) const {
    const Shape size = shape_of(scheme, float32, shape);
    const int most = most_items(scheme, shape);
    if (scheme == Scheme::units) return items(most_groups(), columns) <= most * kWarps;
    if (scheme == Scheme::sums)
      return row_warps == kWarps && groups <= size.groups * kWarps && items(most_groups(), columns) <= most * kWarps;
    return most_groups() <= size.groups * row_warps && items(size.groups, columns) <= most * k_warps();
  }
};

// The values of each unit that a block keeps in shared memory: biases in the forward pass, without a product the
// recurrent weights, and parameters.
PRNN_BOTH constexpr int constants_of(Scheme scheme, bool backward, int G, int params) {
  return (backward ? 0 : G) + (scheme == Scheme::units ? G : 0) + params;
}

// A warp's sums of 16 units and eight columns: two columns' units follow each other, and a gap, so that neither those
// who write sums nor those who read them meet in a bank.
PRNN_BOTH constexpr int sum_at(int column, int unit) { return (column / 2 * 40 + column % 2 * kGroup + unit) * 4; }
constexpr int kSumTile = 160 * 4;  // bytes
// A block's share of the sums of 16 units and two columns, as it is sent.
constexpr int kSumPair = 2 * kGroup * 4;  // bytes

// A block's shared memory, in bytes from its start.
struct SharedMemory {
  int state, state_size;  // the exchanged state: [buffers][k_groups][columns][16]
  int buffers;            // two; one where a warp receives from global memory for itself alone, none where it receives
                          // into registers
  int sums, sums_size;    // two buffers of the warps' shares of a sum, or of the blocks': [blocks][groups][pairs]
  int constants;          // [groups of the block][constants_of][16] floats
  int weights;            // [warps][fragments beyond the resident ones][row tiles][32 lanes]
  int total;

  PRNN_BOTH SharedMemory(const Plan& plan, Scheme scheme, int shape_index, int G, int constants_of_unit, int resident,
                         bool backward, bool float32) {
    const Shape shape = shape_of(scheme, float32, shape_index);
    const int size = float32 ? 4 : 2, rows = row_tiles(G, backward, shape.groups);
    const bool grid = scheme == Scheme::grid, product = scheme != Scheme::units;
    const int beyond = product ? plan.warp_k_groups() - resident : 0;
    state = 128;  // the barriers stand first
    state_size = product ? plan.k_groups * (grid && !float32 ? shape.columns : plan.columns) * kGroup * size : 0;
    buffers = !grid ? 2 : !float32 ? 0 : plan.row_warps == 1 ? 1 : 2;
    sums = state + buffers * state_size;
    sums_size = scheme == Scheme::sums ? plan.blocks * plan.most_groups() * plan.pairs() * kSumPair
                : product              ? kWarps * rows * ((shape.columns + 7) / 8) * kSumTile
                                       : 0;
    constants = sums + 2 * sums_size;
    const int groups = scheme == Scheme::sums ? 2 * kWarps : plan.row_warps * shape.groups;  // of a block, at most
    weights = constants + groups * constants_of_unit * kGroup * 4;
    total = weights + (beyond > 0 ? kThreads * beyond * rows * (float32 ? 32 : 16) : 0);
  }
};

}  // namespace prnn::cuda
