// A recurrent weight of diagonal blocks: heads of K units each, which meet only themselves; [G*H,K]. Dense: K = H.
// Diagonal: K = 1, a product unit by unit; K = 0: no recurrent weight.
// Included inside the namespace of an instruction set, after shape.h.
//
// The products of heads go over panels, vectors of units. A panel needs the states of the heads that its units belong
// to: `width` of them from first(panel) on, zeros in the packed weight where a unit and a state are of different heads.
struct Blocks {
  int64_t H, K, heads, width;

  explicit Blocks(const Layer& layer) : H(layer.H), K(recurrent_units(layer)), heads(K ? H / K : 0), width(K) {
    if (diagonal()) heads = width = 0;
    if (width % kLanes == 0) return;
    const int64_t spanned = kLanes % K == 0 ? kLanes : ((kLanes + K - 2) / K + 1) * K;
    width = spanned < H ? spanned : H;
  }

  bool dense() const { return K == H; }
  bool diagonal() const { return K == 1 && H > 1; }
  int64_t head_of(int64_t unit) const { return unit / K; }
  int64_t first(int64_t panel) const {
    const int64_t begin = panel * kLanes / K * K;
    return begin < H - width ? begin : H - width;
  }

  // Calls use(begin, end, first) with the runs of panels [v0, v1) that need the same states.
  template <class Use>
  void each_run(int64_t v0, int64_t v1, Use use) const {
    for (int64_t begin = v0, end; begin < v1; begin = end) {
      for (end = begin + 1; end < v1 && first(end) == first(begin);) ++end;
      use(begin, end, first(begin));
    }
  }

  // Element (row, column) of the weight of a gate as if it were dense.
  template <class E>
  E at(const E* weight, int64_t gate, int64_t row, int64_t column) const {
    const bool together = row < H && column < H && head_of(row) == head_of(column);
    return together ? weight[(gate * H + row) * K + column - head_of(column) * K] : E{};
  }
};

// A weight [G*H] of a diagonal recurrence as floats, with rows of whole vectors: [G,P].
template <class E>
static inline void copy_diagonal(float* to, const void* weight, int64_t G, int64_t H, int64_t P) {
  for (int64_t g = 0; g < G; ++g)
    for (int64_t unit = 0; unit < P; ++unit)
      to[g * P + unit] = unit < H ? to_float(static_cast<const E*>(weight)[g * H + unit]) : 0.0f;
}
