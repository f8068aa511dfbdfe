// The partition of a recurrence over a GPU: the cost model, and all sizes shared by the kernels and the host.
//
// Letters: T time steps, B batch, H hidden size, G gates. A group is 16 hidden units, a fragment 16 x 16 weights; a
// tile is a set of samples (columns) that one team of blocks runs through all T steps.
#pragma once

#include <cstdint>
#include <optional>

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
// Tensor cores need multiples of eight columns; exact float32 products are cheap for few columns.
PRNN_BOTH constexpr Shape shape_of(Scheme scheme, bool float32, int index) {
  const int columns = float32 ? (index == 1 ? 8 : 2) : (index == 1 ? 16 : 8);
  return {scheme == Scheme::sums ? (index == 2 ? 6 : 4) : (index == 2 ? 2 : 1), columns};
}

// Tiles of 16 rows that a warp multiplies: the gates of its units; in the backward pass, the units themselves.
PRNN_BOTH constexpr int row_tiles(int G, bool backward, int groups) { return (backward ? 1 : G) * groups; }

// The pointwise work of a row of warps comes in items, of a group and two columns: of an item a lane has a unit of one
// column. The maximum for one warp, whose registers hold their state: more than one gives a block more units, so that
// more tiles run side by side; on the grid, where loads in flight take registers too, it costs more than it gives.
// Where sums are exchanged, a block of 8 columns has 32 units and all registers for weights, or more units.
PRNN_BOTH constexpr int items(int groups, int columns) { return groups * ((columns + 1) / 2); }
PRNN_BOTH constexpr int most_items(Scheme scheme, int shape_index) {
  return scheme == Scheme::grid || (scheme == Scheme::sums && shape_index == 0) ? 1 : 2;
}

struct Plan {
  Regime regime;
  int shape;       // index for shape_of
  int row_warps;   // a block's warps are row_warps x k_warps: rows of the product, slices of its sum
  int blocks;      // of a team
  int directions;  // that run side by side: 1 or 2 passes of one shape
  int teams;       // at work at a time, of all directions
  int tiles;       // of the batch, for each direction
  int columns;     // samples of a tile
  int groups;      // of units, of the whole layer
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
  bool fits(Scheme scheme, bool float32) const {
    const Shape size = shape_of(scheme, float32, shape);
    const int most = most_items(scheme, shape);
    if (scheme == Scheme::sums)
      return row_warps == kWarps && groups <= size.groups * kWarps && items(most_groups(), columns) <= most * kWarps;
    return most_groups() <= size.groups * row_warps && items(size.groups, columns) <= most * k_warps();
  }
};

inline Scheme scheme_of(const Plan& plan, Cell cell, bool backward, bool float32) {
  return scheme_of(plan.regime, backward, static_cast<int>(gates(cell)), float32);
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
  int bias;               // [groups of the block][G][16] floats, of the forward pass
  int weights;            // [warps][fragments beyond the resident ones][row tiles][32 lanes]
  int total;

  // Throws std::runtime_error for a cell without kernels.
  SharedMemory(const Plan& plan, Cell cell, bool backward, bool float32)
      : SharedMemory(plan, plan.shape, static_cast<int>(gates(cell)),
                     resident_fragments(cell, scheme_of(plan, cell, backward, float32), backward, float32, plan.shape),
                     backward, float32) {}
  PRNN_BOTH SharedMemory(const Plan& plan, int shape_index, int G, int resident, bool backward, bool float32) {
    const Scheme scheme = scheme_of(plan.regime, backward, G, float32);
    const Shape shape = shape_of(scheme, float32, shape_index);
    const int size = float32 ? 4 : 2, rows = row_tiles(G, backward, shape.groups);
    const bool grid = scheme == Scheme::grid;
    const int beyond = plan.warp_k_groups() - resident;
    state = 128;  // the barriers stand first
    state_size = plan.k_groups * (grid && !float32 ? shape.columns : plan.columns) * kGroup * size;
    buffers = !grid ? 2 : !float32 ? 0 : plan.row_warps == 1 ? 1 : 2;
    sums = state + buffers * state_size;
    sums_size = scheme == Scheme::sums ? plan.blocks * plan.most_groups() * plan.pairs() * kSumPair
                                       : kWarps * rows * ((shape.columns + 7) / 8) * kSumTile;
    bias = sums + 2 * sums_size;
    weights = bias + (backward ? 0 : plan.row_warps * shape.groups * G * kGroup * 4);
    total = weights + (beyond > 0 ? kThreads * beyond * rows * (float32 ? 32 : 16) : 0);
  }
};

// What a block has of each publication, its own share included, in bytes.
inline double received_bytes(const Plan& plan, Scheme scheme, bool float32) {
  if (scheme == Scheme::sums) return double(plan.blocks) * plan.most_groups() * plan.pairs() * kSumPair;
  return double(plan.k_groups) * kGroup * plan.columns * (float32 ? 4 : 2);
}

// Bytes of global memory that the teams exchange through: [teams][kSlots][state_size]. Those of each team's first
// kCleared slots are 0xFF when the kernel starts; it clears the others itself before they are polled.
inline int64_t workspace_bytes(const Plan& plan, const SharedMemory& shared) {
  return plan.regime == Regime::grid ? int64_t(plan.teams) * kSlots * shared.state_size : 0;
}

// The device properties that a plan depends on.
struct Device {
  int multiprocessors;
  int shared_memory;  // bytes a block may ask for
  int clusters[4];    // of 2, 4, 8, 16 blocks: how many run at a time; 0: none
  double clock_ghz;
};

// What a plan may use of the device: at most so many multiprocessors, 0 for all, and as large a share of its clusters.
Device limited(Device device, int multiprocessors);

// Constraints on a plan; fields without a value are free.
struct PlanFilter {
  std::optional<Regime> regime;
  std::optional<int> shape, row_warps, blocks, directions, tiles, tf32;

  bool admits(const Plan& plan) const;
};

// The cost model's time of a step of all directions and tiles of the plan. Throws std::runtime_error for a cell without
// kernels, as does make_plan.
double step_microseconds(const Plan& plan, Cell cell, Dtype dtype, bool backward, const Device& device,
                         const Costs& costs);

// The cheapest plan for `directions` passes; none where the weights fit nowhere or the filter admits none.
std::optional<Plan> make_plan(Cell cell, Dtype dtype, int64_t B, int64_t H, bool backward, bool tf32, int directions,
                              const Device& device, const PlanFilter& filter = {});

}  // namespace prnn::cuda
