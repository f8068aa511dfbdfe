// The pointwise part of a step, compiled for each cell; the passes around it are the same for all.
// Included inside the namespace of an instruction set, after simd.h and the cells.

// What a cell saves is of type E, or float.
template <class C, class E, bool ROUNDS = C::kRoundsSaved>
struct SavedOf {
  using Type = E;
};
template <class C, class E>
struct SavedOf<C, E, false> {
  using Type = float;
};

// The size of an array of n elements: of none, one. No spare ones, so that a sanitizer notices where a cell goes
// beyond.
static constexpr int64_t array_of(int64_t n) { return n ? n : 1; }

// A vector of the gates of an input of size I: the sum in its order, and the bias.
template <int I, class E>
static inline Vec projected(const E* x, const StepLayout& layout, int64_t column, int64_t row) {
  Vec sum = {};
  for (int i = 0; i < I; ++i) sum += broadcast(to_float(x[i])) * load(layout.weight_x + i * row + column);
  return sum + load(layout.bias_x + column);
}

// `next` is the sample after, or null. Copies of the arguments, in both passes: a store may not change those.
template <class C, class E, class Element, int NARROW>
static inline void step_forward(const StepLayout& layout, const ForwardSample a, const ForwardSample* next) {
  using Saved = typename SavedOf<C, E>::Type;
  const int64_t H = layout.H, P = layout.P;
  for (int64_t v = layout.first; v < layout.last; ++v) {
    const int64_t unit = v * kLanes, count = H - unit < kLanes ? H - unit : kLanes;
    Vec gates_x[C::kGates], gates_h[C::kGates], saved[array_of(C::kSaved)], states[array_of(C::kStates)] = {};
    Vec params[array_of(C::kParams)], inputs[array_of(C::kInputs)];
    for (int64_t g = 0; g < C::kGates; ++g) {
      if constexpr (NARROW > 0)
        gates_x[g] = projected<NARROW>(static_cast<const E*>(a.x), layout, g * P + unit, C::kGates * P);
      else
        gates_x[g] = load(a.gates_x + g * P + unit);
      gates_h[g] = load(a.gates_h + g * P + unit);
    }
    for (int64_t k = 0; k < C::kStates; ++k)
      if (!a.reset) states[k] = load(a.states + k * layout.state_step + unit);
    for (int64_t k = 0; k < C::kParams; ++k) params[k] = load(layout.params + k * P + unit);
    for (int64_t k = 0; k < C::kInputs; ++k) inputs[k] = load(a.inputs + k * H + unit, count);
    const Vec h_prev = a.reset ? Vec{} : load(static_cast<const Element*>(a.h_prev) + unit);
    if (next) {  // while this sample is computed, and not while its stores wait for memory
      __builtin_prefetch(static_cast<E*>(next->output) + unit, 1);
      if (C::kSaved && next->saved)
        for (int64_t i = 0; i < C::kSaved; ++i) __builtin_prefetch(static_cast<Saved*>(next->saved) + i * H + unit, 1);
    }
    const Vec h = rounded<E>(C::forward(gates_x, gates_h, h_prev, states, params, inputs, saved));
    store(static_cast<Element*>(a.h) + unit, h);
    for (int64_t k = 0; k < C::kStates; ++k) store(a.states + k * layout.state_step + unit, states[k]);
    E* output = static_cast<E*>(a.output) + unit;
    if constexpr (C::kOutput < 0) {
      store(output, h, count);
    } else {
      store(output, states[C::kOutput], count);
      if (a.hidden) store(static_cast<E*>(a.hidden) + unit, h, count);
    }
    if (C::kSaved && a.saved)
      for (int64_t i = 0; i < C::kSaved; ++i) store(static_cast<Saved*>(a.saved) + i * H + unit, saved[i], count);
    if (a.h_n) {
      store(static_cast<E*>(a.h_n) + unit, h, count);
      for (int64_t k = 0; k < C::kStates; ++k) store(a.c_n + k * layout.c_step + unit, states[k], count);
    }
  }
}

template <class C, class E, class Element>
static inline void step_backward(const StepLayout& layout, const BackwardSample a) {
  using Saved = typename SavedOf<C, E>::Type;
  constexpr int64_t G = C::kGates;
  const int64_t H = layout.H, P = layout.P;
  for (int64_t v = layout.first; v < layout.last; ++v) {
    const int64_t unit = v * kLanes, count = H - unit < kLanes ? H - unit : kLanes;
    Vec saved[array_of(C::kSaved)], grad_x[G], grad_gates_h[G], grad_states[array_of(C::kStates)],
        states_prev[array_of(C::kStates)] = {};
    Vec params[array_of(C::kParams)], inputs[array_of(C::kInputs)], grad_params[array_of(C::kParams)],
        grad_inputs[array_of(C::kInputs)];
    for (int64_t i = 0; i < C::kSaved; ++i) saved[i] = load(static_cast<const Saved*>(a.saved) + i * H + unit, count);
    Vec grad_h = load(a.grad_h + unit);
    for (int64_t k = 0; k < C::kStates; ++k) grad_states[k] = load(a.grad_states + k * layout.state_step + unit);
    if (a.grad_output) {
      const Vec grad_output = load(static_cast<const E*>(a.grad_output) + unit, count);
      if constexpr (C::kOutput < 0)
        grad_h += grad_output;
      else
        grad_states[C::kOutput] += grad_output;
    }
    const Vec h_prev = C::kNeedsHPrev ? load(static_cast<const E*>(a.h_prev) + unit, count) : Vec{};
    for (int64_t k = 0; k < C::kStates; ++k) {
      if (C::state_at(k) < 0) continue;
      const Saved* before = static_cast<const Saved*>(a.saved_before) + C::state_at(k) * H;
      if (a.saved_before) states_prev[k] = load(before + unit, count);
      if (a.c0) states_prev[k] = load(a.c0 + k * layout.c_step + unit, count);
    }
    for (int64_t k = 0; k < C::kParams; ++k) params[k] = load(layout.params + k * P + unit);
    for (int64_t k = 0; k < C::kInputs; ++k) inputs[k] = load(a.inputs + k * H + unit, count);
    const Vec h = load(static_cast<const E*>(a.h) + unit, count);
    const Vec past = C::backward(grad_h, grad_states, h, h_prev, states_prev, params, inputs, saved, grad_x,
                                 grad_gates_h, grad_params, grad_inputs);
    store(a.grad_h + unit, past);
    for (int64_t k = 0; k < C::kStates; ++k) store(a.grad_states + k * layout.state_step + unit, grad_states[k]);
    for (int64_t k = 0; a.grad_params && k < C::kParams; ++k) {
      float* sum = a.grad_params + k * P + unit;
      store(sum, load(sum) + grad_params[k]);
    }
    for (int64_t k = 0; a.grad_inputs && k < C::kInputs; ++k)
      store(a.grad_inputs + k * H + unit, grad_inputs[k], count);
    for (int64_t g = 0; g < G; ++g) {
      const int64_t lanes = g + 1 == G ? kLanes : count;  // a row has room for the last gate's last vector
      store(static_cast<Element*>(a.grad_gates_h) + g * H + unit, grad_gates_h[g], lanes);
      if (C::kSplitsGates) store(static_cast<Element*>(a.grad_gates_x) + g * H + unit, grad_x[g], lanes);
    }
  }
}

template <class C, class E, class Element, int NARROW>
static void steps_forward_of(const StepLayout& given, const ForwardSample* samples, int64_t n) {
  const StepLayout layout = given;
  for (int64_t i = 0; i < n; ++i)
    step_forward<C, E, Element, NARROW>(layout, samples[i], i + 1 < n ? samples + i + 1 : nullptr);
}

template <class C, class E, class Element>
static void steps_forward(const StepLayout& layout, const ForwardSample* samples, int64_t n) {
  static_assert(kNarrow == 2, "one case for each size");
  if (layout.narrow == 0) return steps_forward_of<C, E, Element, 0>(layout, samples, n);
  if (layout.narrow == 1) return steps_forward_of<C, E, Element, 1>(layout, samples, n);
  steps_forward_of<C, E, Element, 2>(layout, samples, n);
}

template <class C, class E, class Element>
static void steps_backward(const StepLayout& given, const BackwardSample* samples, int64_t n) {
  const StepLayout layout = given;
  for (int64_t i = 0; i < n; ++i) step_backward<C, E, Element>(layout, samples[i]);
}

template <class C, class E, class Element>
static constexpr Pointwise kPointwise = {steps_forward<C, E, Element>, steps_backward<C, E, Element>};
