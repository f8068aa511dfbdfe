#include "parts.h"

#include <algorithm>

#include "driver.h"
#include "rounding.h"

namespace prnn::cpu {

namespace {

// A part's rows fill the tiles, and repay its copy of the packed weights; its sums stay in the cache beside them.
constexpr int64_t kMostParts = 2, kSamples = 8, kRows = 512, kWeightBytes = 512 << 10;

int64_t size_of(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

template <class Void>
Void* moved(Void* pointer, int64_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<Void>, const char, char>;
  return pointer ? static_cast<Byte*>(pointer) + bytes : nullptr;
}

template <class Void>
Sequence<Void> moved(Sequence<Void> sequence, int64_t b, int64_t size) {
  return {moved(sequence.data, b * sequence.row * size), sequence.step, sequence.row};
}

// Floats, rounded up to cache lines.
int64_t whole_lines(int64_t count) { return (count + 15) / 16 * 16; }

template <class X>
X* shifted(X* pointer, int64_t count) {
  return pointer ? pointer + count : nullptr;
}

// Samples [begin, end) of a pass.
BackwardPart part_of(const Backward& pass, int64_t begin, int64_t end) {
  const int64_t size = size_of(pass.dtype), state = begin * pass.H;
  const CellRow& cell = cell_row(pass);
  BackwardPart part = whole(pass);
  part.B = end - begin;
  part.x = moved(pass.x, begin, size);
  part.output = moved(pass.output, begin, size), part.hidden = moved(pass.hidden, begin, size);
  part.grad_output = moved(pass.grad_output, begin, size), part.grad_x = moved(pass.grad_x, begin, size);
  part.inputs = moved(pass.inputs, begin, 4), part.grad_inputs = moved(pass.grad_inputs, begin, 4);
  part.saved = moved(pass.saved, state * cell.saved * (cell.rounds_saved ? size : 4));
  part.h0 = moved(pass.h0, state * size), part.grad_h0 = moved(pass.grad_h0, state * size);
  part.grad_h_n = moved(pass.grad_h_n, state * size);
  part.c0 = shifted(pass.c0, state), part.grad_c0 = shifted(pass.grad_c0, state);
  part.grad_c_n = shifted(pass.grad_c_n, state);
  part.lengths = shifted(pass.lengths, begin), part.resets = shifted(pass.resets, begin);
  return part;
}

}  // namespace

int64_t parts_of(const Layer& layer) {
  const int64_t columns = recurrent_units(layer) + (layer.weight_ih ? layer.I : 0);
  if (cell_row(layer).gates * layer.H * columns * 4 > kWeightBytes) return 1;
  int64_t count = kMostParts;
  while (count > 1 && (layer.B < count * kSamples || layer.T * layer.B < count * kRows)) count /= 2;
  return count;
}

Parts::Parts(const Backward& pass, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    int64_t begin, end;
    Member::share(pass.B, i, count, begin, end);
    parts_.push_back(part_of(pass, begin, end));
  }
  if (count == 1) return;
  const int64_t rows = cell_row(pass).gates * pass.H;
  const auto add = [&](auto place, int64_t size, bool is_float) {
    if (pass.*place) sums_.push_back({pass.*place, nullptr, size, is_float}), stride_ += whole_lines(size);
  };
  const auto each = [&](const auto& use) {
    const bool is_float = pass.dtype == Dtype::float32;
    use(&Backward::grad_weight_hh, rows * recurrent_units(pass), is_float);
    use(&Backward::grad_weight_ih, pass.weight_ih ? rows * pass.I : 0, is_float);
    use(&Backward::grad_bias_hh, rows, is_float), use(&Backward::grad_bias_ih, rows, is_float);
    use(&Backward::grad_params, cell_row(pass).params * pass.H, true);
  };
  each(add);
  memory_ = Scratch(count * stride_ * 4);
  float* next = reinterpret_cast<float*>(memory_.get());
  size_t number = 0;
  each([&](auto place, int64_t size, bool) {
    if (!(pass.*place)) return;
    sums_[number++].first = next;
    for (int64_t i = 0; i < count; ++i) parts_[size_t(i)].*place = next + i * stride_;
    next += whole_lines(size);
  });
  for (BackwardPart& part : parts_) part.float_sums = true;
}

void Parts::add_up(const Member& member) const {
  const int64_t count = static_cast<int64_t>(parts_.size());
  for (const Sum& sum : sums_) {
    int64_t begin, end;
    Member::share(sum.count, member.rank, member.size, begin, end);
    for (int64_t i = begin; i < end; ++i) {
      float total = sum.first[i];
      for (int64_t part = 1; part < count; ++part) total += sum.first[part * stride_ + i];
      if (sum.is_float)
        static_cast<float*>(sum.place)[i] = total;
      else
        static_cast<uint16_t*>(sum.place)[i] = bfloat16(total);
    }
  }
}

}  // namespace prnn::cpu
