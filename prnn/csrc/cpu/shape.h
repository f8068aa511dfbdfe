// Shared by the two passes: the sizes of a layer in vectors, a member's part of it, scratch memory.
// Included inside the namespace of an instruction set, after tile.h.

// A bump allocator with cache-line alignment; without a base it only counts.
class Arena {
 public:
  explicit Arena(char* base) : base_(base) {}
  template <class X>
  X* take(int64_t count) {
    return reinterpret_cast<X*>(bytes(count * static_cast<int64_t>(sizeof(X))));
  }
  int64_t used() const { return used_; }

 private:
  // Not inlined into the passes' constructors, which call it some twenty times each.
  __attribute__((noinline)) char* bytes(int64_t count) {
    char* piece = base_ ? base_ + used_ : nullptr;
    used_ += (count + 63) / 64 * 64;
    return piece;
  }

  char* base_;
  int64_t used_ = 0;
};

// The bytes of an element of `saved`.
template <class E>
static inline int64_t saved_size(const CellRow& cell) {
  return cell.rounds_saved ? sizeof(E) : sizeof(float);
}

template <class Op>
static constexpr int64_t words_of(int64_t elements) {
  return (elements + Op::kElements - 1) / Op::kElements;
}

static inline int64_t panels_of(int64_t columns) { return (columns + kLanes - 1) / kLanes; }

// A member's samples [b0, b1) and vectors of hidden units [v0, v1), and the members of its barrier: [first, last).
struct Part {
  int64_t b0, b1, v0, v1, first, last;

  Part(const Plan& plan, const Member& member, int64_t B, int64_t vectors) {
    const int64_t group = member.rank / plan.hidden_groups;
    first = group * plan.hidden_groups, last = first + plan.hidden_groups;
    Member::share(B, group, plan.batch_groups, b0, b1);
    Member::share(vectors, member.rank % plan.hidden_groups, plan.hidden_groups, v0, v1);
  }
};

// Copies n elements from one type to another; null reads as zero.
template <class To, class From>
static inline void convert(To* to, const From* from, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t count = n - i < kLanes ? n - i : kLanes;
    store(to + i, from ? load(from + i, count) : Vec{}, count);
  }
}

// The layer's parameters [params,H] with rows of whole vectors: [params,P].
static inline void copy_params(float* to, const Layer& layer, int64_t P) {
  for (int64_t k = 0; k < cell_row(layer).params; ++k)
    for (int64_t unit = 0; unit < P; ++unit)
      to[k * P + unit] = unit < layer.H ? layer.params[k * layer.H + unit] : 0.0f;
}
