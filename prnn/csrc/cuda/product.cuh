// The matmul of one step: a warp's rows of a matrix that stays in its registers, times the exchanged state.
//
// A group of 16 units is stored as [column][16], unit u at position 2 (u % 8) + u / 8. Lane (g, t) = (lane / 4,
// lane % 4) then has, of every fragment, rows g and g + 8 at positions 4t to 4t + 3, and of the state, column g at the
// same positions: one load of 8 or 16 bytes, contiguous over the lanes. Its results are the sums of rows g and g + 8,
// columns 2t and 2t + 1: two units that are adjacent in memory again. The order of k is free, as long as both operands
// agree; positions correspond to the order of the instructions (PTX ISA, mma.m16n8k16 and m16n8k8).
#pragma once

#include "plan.h"
#include "primitives.cuh"

namespace prnn::cuda {

PRNN_DEVICE int unit_at(int position) { return position / 2 + position % 2 * 8; }

template <class E>
constexpr bool kIsFloat = sizeof(E) == 4;
template <class E>
constexpr int kWords = kIsFloat<E> ? 8 : 4;  // of a fragment, in a lane

// `element(row, unit)` gives the weight of a fragment's row and of a unit of the k group.
template <class E, class Element>
PRNN_DEVICE void load_fragment(uint32_t* words, bool tf32, const Element& element) {
  const int g = lane() / 4, t = lane() % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = g + 8 * half;
    if constexpr (kIsFloat<E>) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float weight = element(row, unit_at(4 * t + i));
        words[2 * i + half] = bits_of<uint32_t>(tf32 ? round_to_tf32(weight) : weight);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        words[2 * i + half] =
            element(row, unit_at(4 * t + 2 * i)).bits | uint32_t(element(row, unit_at(4 * t + 2 * i + 1)).bits) << 16;
    }
  }
}

// kTiles tiles of 16 rows, kColumns columns, kResident fragments of k in registers and the rest in shared memory.
template <class E, int kTiles, int kColumns, int kResident>
struct Product {
  static constexpr int kColumnTiles = (kColumns + 7) / 8;
  using Sums = float[kTiles][kColumnTiles][4];  // as mma's accumulators: (g, 2t), (g, 2t + 1), (g + 8, 2t), ...

  struct Fragment {
    uint32_t word[kWords<E>];
  };
  Fragment resident[kResident > 0 ? kResident : 1][kTiles];
  char* beyond;      // this lane's share
  int first, count;  // of the k groups
  bool tf32;

  // `element(tile, row, k_group, unit)` gives a weight, zero outside of the matrix.
  template <class Element>
  PRNN_DEVICE_MEMBER void load(const Plan& plan, char* shared, const Element& element) {
    const int own = plan.warp_k_groups(), most = plan.k_groups;
    tf32 = plan.tf32;
    first = warp() % plan.k_warps() * own;
    count = first >= most ? 0 : most - first < own ? most - first : own;
    const int extra = own > kResident ? own - kResident : 0;
    beyond = shared + warp() * extra * kTiles * 32 * kWords<E> * 4 + lane() * 16;
#pragma unroll
    for (int i = 0; i < kResident * kTiles * kWords<E>; ++i)
      resident[i / (kTiles * kWords<E>)][i / kWords<E> % kTiles].word[i % kWords<E>] = 0;
    // Not unrolled, since a fragment's loads are much code that runs once; each is assigned to a statically known
    // register.
#pragma unroll 1
    for (int i = 0; i < count * kTiles; ++i) {
      const int k = i / kTiles, m = i % kTiles;
      uint32_t words[kWords<E>];
      load_fragment<E>(words, tf32, [&](int row, int unit) { return element(m, row, first + k, unit); });
#pragma unroll
      for (int own = 0; own < kResident * kTiles; ++own)
#pragma unroll
        for (int word = 0; word < kWords<E>; ++word)
          if (own == i) resident[own / kTiles][own % kTiles].word[word] = words[word];
      if (k < kResident) continue;
#pragma unroll
      for (int part = 0; part < kWords<E> / 4; ++part)
        shared_store(place(k, m, part),
                     Words4{words[4 * part], words[4 * part + 1], words[4 * part + 2], words[4 * part + 3]});
    }
  }

  // The sums over this warp's k groups. state: the exchanged groups, all columns of them.
  PRNN_DEVICE_MEMBER void run(Sums& sums, const char* state) const {
    if constexpr (kIsFloat<E>) {
      if (kColumns < 8 || !tf32) return exactly(sums, state);
    }
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][n][i] = 0;
    each_k([&](int k, const auto& fragment) {
      Words4 b[kColumnTiles];  // of 16 bits: two words
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
        const char* from = column(state, first + k, 8 * n + lane() / 4);
        if constexpr (kIsFloat<E>) {
          b[n] = shared_load<Words4>(from);
        } else {
          const Words2 two = shared_load<Words2>(from);
          b[n].word[0] = two.word[0], b[n].word[1] = two.word[1];
        }
      }
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        const Fragment a = fragment(m);
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
          if constexpr (kIsFloat<E>) {
            multiply_tile_tf32(sums[m][n], a.word, b[n].word);
            multiply_tile_tf32(sums[m][n], a.word + 4, b[n].word + 2);
          } else {
            multiply_tile(sums[m][n], a.word, b[n].word, E{});
          }
        }
      }
    });
  }

 private:
  // Four words of a fragment, contiguous over the lanes.
  PRNN_DEVICE_MEMBER char* place(int k, int m, int part) const {
    return beyond + (((k - kResident) * kTiles + m) * (kWords<E> / 4) + part) * 32 * 16;
  }
  // The offset of this lane's four positions of a column.
  static PRNN_DEVICE_MEMBER const char* column(const char* state, int k_group, int column) {
    return state + ((k_group * kColumns + column) * kGroup + lane() % 4 * 4) * static_cast<int>(sizeof(E));
  }

  template <class Step>
  PRNN_DEVICE_MEMBER void each_k(const Step& step) const {
#pragma unroll
    for (int k = 0; k < kResident; ++k)
      if (k < count) step(k, [&](int m) { return resident[k][m]; });
#pragma unroll 1
    for (int k = kResident; k < count; ++k)
      step(k, [&](int m) {
        Fragment a;
#pragma unroll
        for (int part = 0; part < kWords<E> / 4; ++part) {
          const Words4 four = shared_load<Words4>(place(k, m, part));
#pragma unroll
          for (int i = 0; i < 4; ++i) a.word[4 * part + i] = four.word[i];
        }
        return a;
      });
  }

  // Exact float32: a lane sums its own four positions of all columns, and the four lanes of a row reduce theirs.
  PRNN_DEVICE_MEMBER void exactly(Sums& sums, const char* state) const {
    float part[kTiles][2][kColumns] = {};
    each_k([&](int k, const auto& fragment) {
      Words4 b[kColumns];
#pragma unroll
      for (int n = 0; n < kColumns; ++n) b[n] = shared_load<Words4>(column(state, first + k, n));
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        const Fragment a = fragment(m);
#pragma unroll
        for (int n = 0; n < kColumns; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half)
              part[m][half][n] =
                  multiply_add(bits_of<float>(a.word[2 * i + half]), bits_of<float>(b[n].word[i]), part[m][half][n]);
      }
    });
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) share(part[m][half], sums[m][0] + 2 * half);
  }

  // Sums over the lanes of a row: columns 2t and 2t + 1 are lane t's.
  static PRNN_DEVICE_MEMBER void share(float (&part)[kColumns], float* own) {
    if constexpr (kColumns == 2) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float pair = part[n] + shuffle_xor(part[n], 1);
        own[n] = pair + shuffle_xor(pair, 2);
      }
    } else {
      static_assert(kColumns == 8);
      const bool upper = lane() & 2, odd = lane() & 1;
      float half[4];
#pragma unroll
      for (int n = 0; n < 4; ++n)
        half[n] = (upper ? part[n + 4] : part[n]) + shuffle_xor(upper ? part[n] : part[n + 4], 2);
#pragma unroll
      for (int n = 0; n < 2; ++n) own[n] = (odd ? half[n + 2] : half[n]) + shuffle_xor(odd ? half[n] : half[n + 2], 1);
    }
  }
};

}  // namespace prnn::cuda
