// Shared by both passes: a block's part of the layer, and the reduction of a step's sums.
//
// The units of a block are distributed over its warps like the rows of the matmul. The pointwise work of a warp comes
// in items: 16 units and, of eight columns, those of one parity; lane (g, t) has units g and g + 8, column 2t or 2t
// + 1.
#pragma once

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

// The constants of a cell, from either of its structs.
template <class C>
struct ConstantsOf;
#define PRNN_CONSTANTS(Struct, name)                           \
  template <>                                                  \
  struct ConstantsOf<quick::Struct> : CudaCell<Cell::name> {}; \
  template <>                                                  \
  struct ConstantsOf<exact::Struct> : CudaCell<Cell::name> {};
PRNN_CUDA_CELLS(PRNN_CONSTANTS)
#undef PRNN_CONSTANTS

// The template parameters of a kernel: a cell, an element type, a pass and the shape of a warp's part.
template <class C, class E, bool kBackward, int kShape>
struct Team {
  static constexpr int G = C::kGates;
  static constexpr int kGroups = shape_of(kIsFloat<E>, kShape).groups, kColumns = shape_of(kIsFloat<E>, kShape).columns;
  static constexpr int kTiles = row_tiles(G, kBackward, kGroups), kColumnTiles = (kColumns + 7) / 8;
  static constexpr int kResident = ConstantsOf<C>::resident(kBackward, kIsFloat<E>, kShape);
  static constexpr int kAll = items(kGroups, kColumns);  // of a row of warps
  static constexpr int kItems = kAll < kMostItems ? kAll : kMostItems;
  static constexpr int kRows = kBackward ? 1 : G;  // sums of one unit
  using Product = cuda::Product<E, kTiles, kColumns, kResident>;

  const Plan& plan;
  const int T, B, H, row, slice, first_group, last_group;  // this row of warps has those before last_group
  char* shared;
  const SharedMemory at;
  Exchange<E, kColumns> exchange;
  Product product;

  PRNN_DEVICE_MEMBER Team(const Plan& plan, const WaitLimit& limit, const Layer& layer, void* workspace)
      : plan(plan),
        T(static_cast<int>(layer.T)),
        B(static_cast<int>(layer.B)),
        H(static_cast<int>(layer.H)),
        row(warp() / plan.k_warps()),
        slice(warp() % plan.k_warps()),
        first_group(plan.first_group(plan.rank(block())) + row * kGroups),
        last_group(plan.first_group(plan.rank(block()) + 1)),
        shared(shared_memory()),
        // Not kShape and G, which are the same numbers: with them some of GRU's kernels spill (nvcc 13.0).
        at(plan, plan.shape, static_cast<int>(gates(layer.cell)), kResident, kBackward, kIsFloat<E>),
        exchange(plan, limit, shared, at, workspace) {
    const E* weight = static_cast<const E*>(layer.weight_hh);
    const int width = plan.k_groups / plan.groups;
    product.load(plan, shared + at.weights, [&](int tile, int r, int k_group, int unit) {
      // Forward: row tile g of a group times h. Backward: a group's units times the gates' gradients, W transposed.
      const int group = first_group + (kBackward ? tile : tile / G);
      const int own = group * kGroup + r, other = k_group / width * kGroup + unit;
      if (group >= last_group || own >= H || other >= H) return E{};
      return kBackward ? weight[(int64_t(k_group % width) * H + other) * H + own]
                       : weight[(int64_t(tile % G) * H + own) * H + other];
    });
    sync_block();
  }

  // Where an item's lane stands.
  struct Place {
    int group;   // of the layer; -1 where there is no such item
    int column;  // of the tile
    int sample;  // b; B where there is none
    PRNN_DEVICE_MEMBER bool item() const { return group >= 0; }
    PRNN_DEVICE_MEMBER int unit(int half) const { return group * kGroup + lane() / 4 + 8 * half; }
  };
  PRNN_DEVICE_MEMBER int number_of(int j) const { return j * plan.k_warps() + slice; }
  PRNN_DEVICE_MEMBER Place place(int j, int tile) const {
    const int i = number_of(j), column = i / 2 % kColumnTiles * 8 + lane() % 4 * 2 + i % 2;
    const int group = first_group + i / (2 * kColumnTiles), sample = tile * plan.columns + column;
    const bool item = i < kAll && group < last_group && column < plan.columns;
    return {item ? group : -1, column, item && sample < B ? sample : B};
  }
  PRNN_DEVICE_MEMBER bool there(const Place& place, int half) const { return place.sample < B && place.unit(half) < H; }
  // Of a row of H elements: those of this lane's two units.
  PRNN_DEVICE_MEMBER Pair<E> load(const E* row, const Place& place) const {
    const int low = place.unit(0), high = place.unit(1);
    return {low < H ? row[low] : E{}, high < H ? row[high] : E{}};
  }

  // Receives what was published and multiplies. Then `total` gives an item's sums.
  PRNN_DEVICE_MEMBER void multiply() {
    typename Product::Sums sums;
    product.run(sums, exchange.receive(product.first, product.count));
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          shared_store(share(slice, m, n, e),
                       Words2{bits_of<uint32_t>(sums[m][n][e]), bits_of<uint32_t>(sums[m][n][e + 2])});
    if (plan.k_warps() > 1) sync_named(1 + row, 32 * plan.k_warps());  // else each lane reads what it wrote
  }

  // The two units' sums of item j, gate q.
  PRNN_DEVICE_MEMBER void total(float (&result)[2], int j, int q) const {
    const int i = number_of(j), m = i / (2 * kColumnTiles) * kRows + q;
    result[0] = result[1] = 0;
#pragma unroll 4
    for (int s = 0; s < plan.k_warps(); ++s) {
      const Words2 two = shared_load<Words2>(share(s, m, i / 2 % kColumnTiles, i % 2));
      result[0] += bits_of<float>(two.word[0]), result[1] += bits_of<float>(two.word[1]);
    }
  }

 private:
  // This lane's two sums in a warp's share; the buffer is not the step before's, which others may still be reading.
  PRNN_DEVICE_MEMBER char* share(int s, int m, int n, int e) const {
    const int number = (((row * plan.k_warps() + s) * kTiles + m) * kColumnTiles + n) * 2 + e;
    return shared + at.sums + exchange.parity() * at.sums_size + (number * 32 + lane()) * 8;
  }
};

}  // namespace prnn::cuda
