// The matmul of one step: a warp's rows of a matrix that stays in its registers, times the exchanged state.
//
// A group of 16 units is stored as [column][16]. Lane (g, t) = (lane / 4, lane % 4) has, of every fragment, rows 2g and
// 2g + 1 at units 4t to 4t + 3, and of the state, column g at the same units: one load of 8 or 16 bytes, contiguous
// over the lanes. Its results are the sums of rows 2g and 2g + 1, columns 2t and 2t + 1: two adjacent units. Both the
// order of the rows and that of k are free, as long as all operands agree; the instructions call the rows g and g + 8
// (PTX ISA, mma.m16n8k16 and m16n8k8).
#pragma once

#include <type_traits>

#include "plan.h"
#include "primitives.cuh"

namespace prnn::cuda {

template <class E>
constexpr bool kIsFloat = sizeof(E) == 4;
template <class E>
constexpr int kWords = kIsFloat<E> ? 8 : 4;  // of a fragment, in a lane

// kN elements that are adjacent in memory, for one load.
template <class E, int kN>
struct alignas(kN * sizeof(E)) Adjacent {
  E x[kN];
};

// kTiles tiles of 16 rows, kColumns columns, kResident fragments of k in registers and the rest in shared memory. The
// state of kFlight k groups is loaded at a time, that of kFlightExact for exact products.
template <class E, int kTiles, int kColumns, int kResident, int kFlight, int kFlightExact>
struct Product {
  static constexpr int kColumnTiles = (kColumns + 7) / 8;
  using Sums = float[kTiles][kColumnTiles][4];  // as mma's accumulators: (2g, 2t), (2g, 2t + 1), (2g + 1, 2t), ...
  // The state of a k group: for tensor cores of the lane's column, of eight; for exact products of all columns.
  using Operand = std::conditional_t<kIsFloat<E>, Words4, Words2>;

  struct Fragment {
    uint32_t word[kWords<E>];
  };
  Fragment resident[kResident > 0 ? kResident : 1][kTiles];
  char* beyond;      // this lane's share
  int first, count;  // of the k groups
  bool tf32;

  // The warp multiplies k groups from k_first on, before k_last. `fill(wide, tile, k_group, rows)` sets this lane's
  // part of a fragment: elements of two rows and four units. wide: std::true_type for the first `wide` of the warp's k
  // groups, where it must not branch, since a branch makes each fragment's loads wait for those of the one before.
  template <class Fill>
  PRNN_DEVICE_MEMBER void load(const Plan& plan, int k_first, int k_last, int wide, char* shared, const Fill& fill) {
    constexpr int kBatch = 4;  // fragments whose loads are in flight at a time
    const int most = plan.warp_k_groups();
    tf32 = plan.tf32;
    first = k_first;
    count = k_last > k_first ? k_last - k_first : 0;
    const int extra = most > kResident ? most - kResident : 0;
    beyond = shared + warp() * extra * kTiles * 32 * kWords<E> * 4 + lane() * 16;
#pragma unroll
    for (int i = 0; i < kResident * kTiles * kWords<E>; ++i)
      resident[i / (kTiles * kWords<E>)][i / kWords<E> % kTiles].word[i % kWords<E>] = 0;
    // Not unrolled, since a fragment's loads are much code that runs once; each is assigned to a statically known
    // register.
#pragma unroll 1
    for (int i = 0; i < count * kTiles; i += kBatch) {
      Fragment some[kBatch];
      if ((i + kBatch < count * kTiles ? i + kBatch - 1 : count * kTiles - 1) / kTiles < wide)
        load_some(some, i, fill, std::true_type());
      else
        load_some(some, i, fill, std::false_type());
#pragma unroll
      for (int own = 0; own < kResident * kTiles; ++own)
        if (own - own % kBatch == i) resident[own / kTiles][own % kTiles] = some[own % kBatch];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int k = (i + j) / kTiles, m = (i + j) % kTiles;
        if (k < kResident || k >= count) continue;
#pragma unroll
        for (int part = 0; part < kWords<E> / 4; ++part) {
          const uint32_t* word = some[j].word + 4 * part;
          shared_store(place(k, m, part), Words4{word[0], word[1], word[2], word[3]});
        }
      }
    }
  }

  // The sums over this warp's k groups. `state(k, n, operands)` loads the operands of n k groups from the warp's k-th
  // on; `columns(k, n, operands)` those for exact products.
  template <class State, class Columns>
  PRNN_DEVICE_MEMBER void run(Sums& sums, const State& state, const Columns& columns) const {
    if constexpr (kIsFloat<E>) {
      if (kColumns < 8 || !tf32) return exactly(sums, columns);
    }
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][n][i] = 0;
    each_k<kFlight, kColumnTiles>(state, [&](const Operand(&b)[kColumnTiles], const auto& fragment) {
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
  template <int kCount, class Fill, class Wide>
  PRNN_DEVICE_MEMBER void load_some(Fragment (&some)[kCount], int i, const Fill& fill, Wide wide) const {
    E rows[kCount][2][4];
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
#pragma unroll
      for (int element = 0; element < 8; ++element) rows[j][element / 4][element % 4] = E{};
      const int last = count * kTiles - 1, n = i + j < last ? i + j : last;
      if (wide.value || n == i + j) fill(wide, n % kTiles, first + n / kTiles, rows[j]);
    }
#pragma unroll
    for (int j = 0; j < kCount; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const E* row = rows[j][half];
        if constexpr (kIsFloat<E>) {
#pragma unroll
          for (int n = 0; n < 4; ++n)
            some[j].word[2 * n + half] = bits_of<uint32_t>(tf32 ? round_to_tf32(row[n]) : row[n]);
        } else {
#pragma unroll
          for (int n = 0; n < 2; ++n)
            some[j].word[2 * n + half] = row[2 * n].bits | uint32_t(row[2 * n + 1].bits) << 16;
        }
      }
  }

  // Four words of a fragment, contiguous over the lanes.
  PRNN_DEVICE_MEMBER char* place(int k, int m, int part) const {
    return beyond + (((k - kResident) * kTiles + m) * (kWords<E> / 4) + part) * 32 * 16;
  }

  // All loads of a chunk of k groups precede its products: a branch between them would make each wait for its own.
  template <int kChunk, int kOperands, class Load, class Step>
  PRNN_DEVICE_MEMBER void each_k(const Load& load, const Step& step) const {
    constexpr int kSome = 4, kUnrolled = (kResident + kChunk - 1) / kChunk * kChunk;
#pragma unroll
    for (int k = 0; k < kUnrolled; k += kChunk) {
      if (k >= count) return;
      Operand b[kChunk][kOperands];
      load(k, count - k, b);
      // Instructions that are not executed because of a predicate take their time, too: a branch leaves most of them
      // out.
#pragma unroll
      for (int some = 0; some < kChunk; some += kSome) {
        if (k + some >= count) return;
#pragma unroll
        for (int j = some; j < some + kSome && j < kChunk; ++j) {
          if (k + j >= count) continue;
          if (k + j < kResident)
            step(b[j], [&](int m) { return resident[k + j < kResident ? k + j : 0][m]; });
          else
            step(b[j], [&](int m) { return from_shared(k + j, m); });
        }
      }
    }
#pragma unroll 1
    for (int k = kUnrolled; k < count; k += kChunk) {
      Operand b[kChunk][kOperands];
      load(k, count - k, b);
#pragma unroll
      for (int j = 0; j < kChunk; ++j)
        if (k + j < count) step(b[j], [&](int m) { return from_shared(k + j, m); });
    }
  }
  PRNN_DEVICE_MEMBER Fragment from_shared(int k, int m) const {
    Fragment a;
#pragma unroll
    for (int part = 0; part < kWords<E> / 4; ++part) {
      const Words4 four = shared_load<Words4>(place(k, m, part));
#pragma unroll
      for (int i = 0; i < 4; ++i) a.word[4 * part + i] = four.word[i];
    }
    return a;
  }

  // Exact float32: a lane sums its own four units of all columns, and the four lanes of a row reduce theirs.
  template <class Columns>
  PRNN_DEVICE_MEMBER void exactly(Sums& sums, const Columns& columns) const {
    float part[kTiles][2][kColumns] = {};
    each_k<kFlightExact, kColumns>(columns, [&](const Operand(&b)[kColumns], const auto& fragment) {
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
