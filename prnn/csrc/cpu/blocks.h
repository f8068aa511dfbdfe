// A recurrent weight of diagonal blocks: heads of K units each, which meet only themselves; [G*H,K]. Dense: one head.
// Diagonal: K = 1, a product unit by unit; K = 0: no recurrent weight.
// Included inside the namespace of an instruction set, after shape.h.
struct Blocks {
  int64_t H, K, heads, panels;  // panels: vectors of a head's units

  explicit Blocks(const Layer& layer) : H(layer.H), K(recurrent_units(layer)), heads(0), panels(0) {
    if (K && !diagonal()) heads = H / K, panels = panels_of(K);
  }

  bool dense() const { return K == H; }
  bool diagonal() const { return K == 1 && H > 1; }

  // Calls use(head, panel, unit, count) for each head of vectors [v0, v1) of units, whose first unit in them, of number
  // `unit`, begins a panel of the head, and which has `count` there: a plan does not cut through panels (plan.cpp).
  template <class Use>
  void each_head(int64_t v0, int64_t v1, Use use) const {
    const int64_t stop = v1 * kLanes < H ? v1 * kLanes : H;
    for (int64_t unit = v0 * kLanes, end; unit < stop; unit = end) {
      const int64_t head = unit / K;
      end = (head + 1) * K < stop ? (head + 1) * K : stop;
      use(head, (unit - head * K) / kLanes, unit, end - unit);
    }
  }
};

// A weight [G*H] of a diagonal recurrence as floats, with rows of whole vectors: [G,P].
template <class E>
static inline void copy_diagonal(float* to, const void* weight, int64_t G, int64_t H, int64_t P) {
  for (int64_t g = 0; g < G; ++g)
    for (int64_t unit = 0; unit < P; ++unit)
      to[g * P + unit] = unit < H ? to_float(static_cast<const E*>(weight)[g * H + unit]) : 0.0f;
}
