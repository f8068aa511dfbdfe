// Shared by both passes: a block's part of the layer, and the reduction of a step's sums.
//
// The units of a block are distributed over its warps like the rows of the matmul. The pointwise work of a warp comes
// in items of 16 units and two columns: a lane has one unit of one column. Where each unit meets its own h alone, that
// is all: its lane multiplies what it has itself.
//
// A step must not compute what is the same in all: addresses are computed before, and advance.
#pragma once

#include "cluster_sums.cuh"
#include "exchange.cuh"
#include "product.cuh"

namespace prnn::cuda {

// Functions of V = float, accurate enough for the 16-bit types. tanh near zero: an absolute error of 6e-8.
namespace quick {
template <class V>
PRNN_DEVICE V sigmoid_of(V x) {
  return quotient(1.0f, 1.0f + fast_exponential(-x));
}
template <class V>
PRNN_DEVICE V tanh_of(V x) {
  return 1.0f - quotient(2.0f, 1.0f + fast_exponential(2.0f * x));
}
#define PRNN_CELL_FUNCTION \
  template <class V>       \
  static PRNN_DEVICE_MEMBER
#include "../cells.h"
}  // namespace quick

namespace exact {
template <class V>
PRNN_DEVICE V sigmoid_of(V x) {
  return 1.0f / (1.0f + exponential(-x));
}
template <class V>
PRNN_DEVICE V tanh_of(V x) {
  return tangent(x);
}
#include "../cells.h"
#undef PRNN_CELL_FUNCTION
}  // namespace exact

// The model of a cell, from either of its structs.
template <class C>
struct ModelOf;
#define PRNN_MODEL(Struct, name)                           \
  template <>                                              \
  struct ModelOf<quick::Struct> : CudaCell<Cell::name> {}; \
  template <>                                              \
  struct ModelOf<exact::Struct> : CudaCell<Cell::name> {};
PRNN_CUDA_CELLS(PRNN_MODEL)
#undef PRNN_MODEL

// What a cell saves: elements, or floats.
template <class C, class E>
using SavedOf = std::conditional_t<C::kRoundsSaved, E, float>;

// In place of what a kernel has no use for.
struct Absent {
  template <class... Arguments>
  PRNN_DEVICE_MEMBER Absent(const Arguments&...) {}
};

// The template parameters of a kernel: a cell, an element type, a pass, what is exchanged, and the shape of a warp's
// part.
template <class C, class E, bool kBackward, Scheme kScheme, int kShape>
struct Team {
  static constexpr bool kSums = kScheme == Scheme::sums, kUnits = kScheme == Scheme::units;
  static constexpr bool kAnyWarp = kSums || kUnits;  // has any item of its block
  static constexpr int G = C::kGates;
  static constexpr int kGroups = shape_of(kScheme, kIsFloat<E>, kShape).groups;
  static constexpr int kColumns = shape_of(kScheme, kIsFloat<E>, kShape).columns;
  static constexpr int kTiles = row_tiles(G, kBackward, kGroups), kColumnTiles = (kColumns + 7) / 8;
  static constexpr int kResident = ModelOf<C>::kModel.resident[int(kScheme)][kIsFloat<E>][kBackward][kShape];
  static constexpr int kConstants = constants_of(kScheme, kBackward, G, C::kParams);
  static constexpr int kMost = most_items(kScheme, kShape), kAll = items(kGroups, kColumns);
  static constexpr int kItems = kAll < kMost ? kAll : kMost;
  static constexpr int kRows = kBackward ? 1 : G;   // sums of one unit
  static constexpr int kWidth = kBackward ? G : 1;  // k groups of one group
  static constexpr int kWarpSums = kTiles * kColumnTiles * kSumTile;
  // Steps whose inputs, of `loads` values of an item each, are loaded together, as many steps before they are wanted.
  static constexpr int ahead(int loads) { return kUnits ? steps_ahead(loads) : 1; }
  using Exchange = cuda::Exchange<E, kColumns, kUnits ? Scheme::local : kScheme>;
  // k groups whose state is loaded at a time. Loads from L2 take some 500 cycles together, those from shared memory 30:
  // all of a step's should be in flight at a time, as far as registers allow. ptxas needs more of them for sm_100a. A
  // user's kernel without room for a fragment of the weights has none for a second load.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  static constexpr int kMostFlight = 8;
#else
  static constexpr int kMostFlight = kTiles <= 3 ? 16 : 8;
#endif
  static constexpr bool kNoRoom = kSums && kIsFloat<E> && kResident == 0 && ModelOf<C>::kModel.any_scheme;
  static constexpr int kFlight = Exchange::kDirect ? kMostFlight : !kIsFloat<E> ? 4 : kNoRoom ? 1 : 2;
  using Product =
      std::conditional_t<kUnits, Absent,
                         cuda::Product<E, kTiles, kColumns, kResident, kFlight / kColumnTiles, kColumns == 2 ? 2 : 1>>;

  const Plan& plan;
  // The warps that share a row's items, and outside of a cluster's sums, its k: slice is this warp's number among them.
  const int T, B, H, k_warps, row, slice;
  const int K, first_unit;                               // of the head, those of the layer without heads
  const int rank, block_group, first_group, last_group;  // the block has groups from block_group on, this row of warps
                                                         // from first_group on, before last_group
  const int first_tile, tile_step;
  char* shared;
  const SharedMemory at;
  Exchange exchange;
  std::conditional_t<kSums, ClusterSums<kTiles, kColumnTiles>, Absent> cluster_sums;
  Product product;
  char* own_sums;  // where this lane writes its warp's
  int own_state;   // the place of this lane's first words of a publication, as operands of mma
  // A lane's part of the warp's items: its column of the tile, the item's group of the head, -1 where there is none,
  // where the sums of this unit and column begin, those of all warps of the row or of all blocks, and the unit's
  // constants, 16 apart.
  struct Item {
    int group, column;
    const char* sums;
    const float* constants;
  } item[kItems];

  // bias: [G*H] of the recurrent projection, or null.
  PRNN_DEVICE_MEMBER Team(const Plan& plan, int team, int head, const WaitLimit& limit, const Layer& layer,
                          const void* bias, void* workspace)
      : plan(plan),
        T(static_cast<int>(layer.T)),
        B(static_cast<int>(layer.B)),
        H(static_cast<int>(layer.H)),
        k_warps(kAnyWarp ? kWarps : plan.k_warps()),
        row(kAnyWarp ? 0 : warp() * plan.row_warps / kWarps),
        slice(warp() - row * k_warps),
        K(C::kHeads && !kUnits ? static_cast<int>(layer.K) : H),
        first_unit(C::kHeads && !kUnits ? head * K : 0),
        rank(block() - team * plan.blocks),
        block_group(plan.first_group(rank)),
        first_group(block_group + row * kGroups),
        last_group(plan.first_group(rank + 1)),
        first_tile(team >> (plan.directions - 1)),  // of one or two directions
        tile_step(plan.teams >> (plan.directions - 1)),
        shared(shared_memory()),
        at(plan, kScheme, kShape, G, kConstants, kResident, kBackward, kIsFloat<E>),
        exchange(plan, limit, shared, at, workspace, C::kHeads ? team + grid_row() * plan.teams : team, row,
                 {rank, block_group * kWidth, last_group * kWidth}),
        cluster_sums(plan, limit, shared, at, rank) {
    if constexpr (!kUnits) {
      load_weights(static_cast<const E*>(layer.weight_hh) + int64_t(first_unit) * K);
      own_sums = shared + at.sums + warp() * kWarpSums + sum_at(lane() % 4 * 2, lane() / 4 * 2);
      own_state = place_of(lane() / 4);
    }
    if constexpr (kConstants > 0) load_constants(layer, static_cast<const E*>(bias));
    const int pairs = plan.pairs();
    int group = 0, pair = slice;  // of the row of warps
#pragma unroll
    for (int j = 0; j < kItems; ++j, pair += k_warps) {
#pragma unroll
      for (int i = 1; i < (kAnyWarp ? kItems : kGroups) * kWarps && pair >= pairs; ++i) pair -= pairs, ++group;
      const bool present = (kAnyWarp || group < kGroups) && first_group + group < last_group;
      item[j].group = present ? first_group + group : -1;
      item[j].column = 2 * pair + lane() / 16;
      if constexpr (kConstants > 0)
        item[j].constants = constants() + (item[j].group - block_group) * kConstants * kGroup + lane() % 16;
      if constexpr (kSums)
        item[j].sums = cluster_sums.place(plan, group, item[j].column, lane() % 16);
      else if constexpr (!kUnits)
        item[j].sums = shared + at.sums + row * k_warps * kWarpSums + group * (kRows * kColumnTiles * kSumTile) +
                       item[j].column / 8 * kSumTile + sum_at(item[j].column % 8, lane() % 16);
    }
    sync_block();
  }

  // Whether this row of warps has units. If not, nobody waits for it: it must not read what others may overwrite.
  PRNN_DEVICE_MEMBER bool idle() const { return Exchange::kDirect && first_group >= last_group; }

  // Where a lane of item j stands.
  struct Place {
    int unit;  // of the layer
    int sample;
    bool there;  // whether there are this unit and this sample
  };
  PRNN_DEVICE_MEMBER bool has(int j) const { return item[j].group >= 0; }
  PRNN_DEVICE_MEMBER Place place(int j, int tile) const {
    const int unit = item[j].group * kGroup + lane() % 16, sample = tile * plan.columns + item[j].column;
    return {first_unit + unit, sample, has(j) && item[j].column < plan.columns && sample < B && unit < K};
  }
  // Its place in a publication, in the first of its group's k groups; negative where it has none.
  PRNN_DEVICE_MEMBER int published_at(int j) const {
    const int group = item[j].group - (kSums ? block_group : 0);
    return item[j].column < plan.columns ? exchange.place(group * kWidth, item[j].column, lane() % 16) : -1;
  }

  // Constants of item j's unit: its bias in a gate, its recurrent weight there without a product, parameters.
  PRNN_DEVICE_MEMBER float bias(int j, int gate) const { return constant(j, gate); }
  PRNN_DEVICE_MEMBER float own_weight(int j, int gate) const { return constant(j, (kBackward ? 0 : G) + gate); }
  PRNN_DEVICE_MEMBER void params(float (&values)[C::kParams + 1], int j) const {
#pragma unroll
    for (int n = 0; n < C::kParams; ++n) values[n] = constant(j, kConstants - C::kParams + n);
  }

  // Of elements of item j: the next publication.
  template <int kN>
  PRNN_DEVICE_MEMBER void put(int published_at, const E (&x)[kN]) const {
    if constexpr (!kUnits) exchange.put(published_at, x);
  }
  // Publishes what was put. Sums of a cluster are on their way then.
  template <class Clears>
  PRNN_DEVICE_MEMBER void publish(const Clears& clears) {
    if constexpr (!kUnits) exchange.publish(clears);
    if constexpr (kSums) {
      typename Product::Sums sums;
      multiply(sums);
      cluster_sums.send(exchange.published(), sums);
    }
  }

  // By all threads: the sums of what was published. Then `total` gives an item's.
  PRNN_DEVICE_MEMBER void finish_sums() {
    if constexpr (kSums) {
      cluster_sums.wait(exchange.published());
    } else if constexpr (!kUnits) {
      typename Product::Sums sums;
      multiply(sums);
      store(sums);
    }
  }

  // The sums of item j, of all gates in the forward pass. In a fixed order. `own`: what it has put.
  PRNN_DEVICE_MEMBER void total(float (&sum)[kRows], int j, const E (&own)[kWidth]) const {
    if constexpr (kUnits) {
      sum[0] = 0;
#pragma unroll
      for (int q = 0; q < G; ++q) {
        // A weight of zero for none would make NaN of an infinite h.
        const float product = C::kHasWeights ? own_weight(j, q) * to_float(own[kBackward ? q : 0]) : 0;
        sum[kBackward ? 0 : q] = kBackward ? sum[0] + product : product;
      }
    } else if constexpr (kSums) {
      sum[0] = cluster_sums.total(plan, exchange.published(), item[j].sums);
    } else {
      const char* from = item[j].sums + exchange.parity() * at.sums_size;
      add<0, 1>(sum, from);
      if (k_warps > 1) add<1, 2>(sum, from);
      if (k_warps > 2) add<2, 4>(sum, from);
      if (k_warps > 4) add<4, 8>(sum, from);
    }
  }

 private:
  PRNN_DEVICE_MEMBER float* constants() const { return reinterpret_cast<float*>(shared + at.constants); }
  PRNN_DEVICE_MEMBER float constant(int j, int number) const {
    return shared_load<float>(item[j].constants + number * kGroup);
  }

  PRNN_DEVICE_MEMBER void load_constants(const Layer& layer, const E* bias) const {
    constexpr int kFirstWeight = kBackward ? 0 : G, kFirstParam = kConstants - C::kParams;
    for (int i = thread(); i < (last_group - block_group) * kConstants * kGroup; i += kThreads) {
      const int number = i / kGroup % kConstants;
      const int of_head = (block_group + i / (kConstants * kGroup)) * kGroup + i % kGroup, unit = first_unit + of_head;
      float value = 0;
      if (of_head >= K)
        value = 0;
      else if (number < kFirstWeight)
        value = bias ? to_float(bias[number * H + unit]) : 0;
      else if (number < kFirstParam)
        value = layer.K ? to_float(static_cast<const E*>(layer.weight_hh)[(number - kFirstWeight) * H + unit]) : 0;
      else
        value = layer.params[(number - kFirstParam) * H + unit];
      shared_store(constants() + i, value);
    }
  }

  template <class Sums>
  PRNN_DEVICE_MEMBER void multiply(Sums& sums) {
    if constexpr (Exchange::kDirect) {
      product.run(
          sums, [&](int k, int n, auto& b) { exchange.receive(own_state + k * exchange.group_size(), n, b); },
          [](int, int, auto&) {});
    } else {
      const int size = exchange.group_size();
      const char* from = exchange.receive(product.first, product.count);
      product.run(
          sums,
          [&](int k, int n, auto& b) {
            load_state<kColumnTiles>(b, n, [&](int j, int tile) {
              return from + (k + j) * size + (tile == 0 ? own_state : place_of(lane() / 4 + 8 * tile));
            });
          },
          [&](int k, int n, auto& b) {
            load_state<kColumns>(b, n, [&](int j, int column) { return from + (k + j) * size + place_of(column); });
          });
    }
  }

  // A warp's part of the sums of its row, and the barrier of the row.
  template <class Sums>
  PRNN_DEVICE_MEMBER void store(const Sums& sums) const {
    char* to = own_sums + exchange.parity() * at.sums_size;
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          shared_store(to + (m * kColumnTiles + n) * kSumTile + sum_at(e, 0),
                       Words2{bits_of<uint32_t>(sums[m][n][e]), bits_of<uint32_t>(sums[m][n][e + 2])});
    if (k_warps > 1)
      sync_named(1 + row, 32 * k_warps);
    else
      sync_warp();
  }

  // Those of the warps kFirst to kLast: all loads come first.
  template <int kFirst, int kLast>
  static PRNN_DEVICE_MEMBER void add(float (&sum)[kRows], const char* from) {
    float part[kLast - kFirst][kRows];
#pragma unroll
    for (int s = 0; s < kLast - kFirst; ++s)
#pragma unroll
      for (int q = 0; q < kRows; ++q)
        part[s][q] = shared_load<float>(from + (kFirst + s) * kWarpSums + q * (kColumnTiles * kSumTile));
#pragma unroll
    for (int s = 0; s < kLast - kFirst; ++s)
#pragma unroll
      for (int q = 0; q < kRows; ++q) sum[q] = kFirst + s == 0 ? part[s][q] : sum[q] + part[s][q];
  }

  // Of this lane's words of a column in the first of its warp's k groups. Absent columns have no place unless received
  // directly: their lanes read the last one, and nobody reads their sums.
  PRNN_DEVICE_MEMBER int place_of(int column) const {
    const bool present = Exchange::kDirect || column < plan.columns;
    return exchange.place(product.first, present ? column : plan.columns - 1, lane() % 4 * 4);
  }

  template <int kOperands, int kChunk, class Operand, class Place>
  static PRNN_DEVICE_MEMBER void load_state(Operand (&b)[kChunk][kOperands], int n, const Place& place) {
#pragma unroll
    for (int j = 0; j < kChunk; ++j)
#pragma unroll
      for (int i = 0; i < kOperands; ++i)
        if (j < n) b[j][i] = shared_load<Operand>(place(j, i));
  }

  // The head's weights. Forward: rows of W of this row of warps' units, gate by gate. Backward: its units' columns of
  // W, W transposed; where sums are exchanged, this warp's part of all units', and the block's rows of W.
  PRNN_DEVICE_MEMBER void load_weights(const E* weight) {
    const int first = kSums ? warp() * kGroups : first_group, last = kSums ? plan.groups : last_group;
    const int base = kSums ? block_group : 0;  // the group of the first k group
    const int most = plan.warp_k_groups(), k_first = kSums ? 0 : slice * most;
    const int of_block = kSums ? (last_group - block_group) * kWidth : plan.k_groups;
    // Warps without rows multiply nothing; in float32 on a grid they take part in receiving what others multiply.
    const int k_end = first < last || (kScheme == Scheme::grid && kIsFloat<E>) ? of_block : 0;
    const int k_last = k_end < k_first + most ? k_end : k_first + most;
    constexpr int kN = kBackward ? 2 : 4;
    const bool aligned = K % kN == 0 && reinterpret_cast<uintptr_t>(weight) % sizeof(Adjacent<E, kN>) == 0;
    const int wide = aligned ? (K / kGroup - base) * kWidth - k_first : 0;  // k groups whose units are all there
    const int g = lane() / 4, t = lane() % 4;
    const auto fill = [&](auto wide, int tile, int k_group, E(&rows)[2][4]) {
      const int group = first + (kBackward ? tile : tile / G), there = group * kGroup + 2 * g;
      // Instead of rows that are not there others are loaded: nobody reads their sums.
      const int own = wide.value && there > K - 2 ? K - 2 : there, other = (base + k_group / kWidth) * kGroup + 4 * t;
      if (!wide.value && group >= last) return;
      if constexpr (kBackward) {
        const E* from = weight + (int64_t(k_group % kWidth) * H + other) * K + own;
#pragma unroll
        for (int i = 0; i < 4; ++i, from += K) {
          if constexpr (wide.value) {
            const auto both = *reinterpret_cast<const Adjacent<E, 2>*>(from);
            rows[0][i] = both.x[0], rows[1][i] = both.x[1];
          } else if (other + i < K) {
            if (own < K) rows[0][i] = from[0];
            if (own + 1 < K) rows[1][i] = from[1];
          }
        }
      } else {
        const E* from = weight + (int64_t(tile % G) * H + own) * K + other;
#pragma unroll
        for (int half = 0; half < 2; ++half, from += K) {
          if constexpr (wide.value) {
            const auto all = *reinterpret_cast<const Adjacent<E, 4>*>(from);
#pragma unroll
            for (int i = 0; i < 4; ++i) rows[half][i] = all.x[i];
          } else {
#pragma unroll
            for (int i = 0; i < 4; ++i)
              if (own + half < K && other + i < K) rows[half][i] = from[i];
          }
        }
      }
    };
    product.load(plan, k_first, k_last, wide, shared + at.weights, fill);
  }
};

}  // namespace prnn::cuda
