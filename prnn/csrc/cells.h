// The cells' pointwise functions, shared by all native backends.
//
// V is a backend's compute type: a float, or a vector of floats with elementwise operators and comparison masks. A
// backend includes this inside its own namespace, after its `tanh_of(V)` and `sigmoid_of(V)`, so that each
// instruction set has its own instantiations. Equations and gate order are torch.nn's; prnn/cell_table.py has the
// same functions in torch operations. Cells written in Python become structs of this form (prnn/codegen).
//
// For one unit of one sample, V each:
//   forward   gates_x[G], gates_h[G] (the input and the recurrent projection, biases included), h_prev, states[kStates]
//             (those besides h; in: before the step, out: after it), params[kParams] (one value for each unit),
//             inputs[kInputs] (one for each unit and step) -> h; saved[S] is what the backward pass needs.
//   backward  grad_h, grad_states (in: of the states after the step, out: of those before it), h, h_prev, states_prev,
//             params, inputs, saved[S] -> grad_x[G], grad_gates_h[G] (the gradients of gates_x and gates_h),
//             grad_params, grad_inputs, and, returned, the part of h_prev's gradient that does not pass through the
//             matrix product.
#ifndef PRNN_CELL_FUNCTION
#define PRNN_CELL_FUNCTION \
  template <class V>       \
  static inline
#endif

// The constants of a cell of torch.nn, as far as it does not set its own.
struct BuiltinCell {
  static constexpr int kStates = 0, kParams = 0, kInputs = 0;
  static constexpr int kOutput = -1;           // what the layer gives out: h, or the state of that number
  static constexpr bool kSplitsGates = false;  // gates_x and gates_h have different gradients
  static constexpr bool kNeedsH = false;       // the backward pass reads h
  static constexpr bool kNeedsHPrev = false;   // and h_prev
  static constexpr bool kRoundsSaved = true;   // `saved` has the type of x; otherwise float
  static constexpr bool kHeads = false;        // W_hh may be block-diagonal; CPU kernels take K when they run
  static constexpr bool kHasWeights = true;    // there is a W_hh (CPU kernels likewise)
  // Where `saved` has state k; -1 if the backward pass does not read it.
  static PRNN_BOTH constexpr int state_at(int) { return -1; }
};

struct RnnTanh : BuiltinCell {
  static constexpr int kGates = 1, kSaved = 0;
  static constexpr bool kNeedsH = true;

  PRNN_CELL_FUNCTION V forward(const V* gates_x, const V* gates_h, V, V*, const V*, const V*, V*) {
    return tanh_of(gates_x[0] + gates_h[0]);
  }
  PRNN_CELL_FUNCTION V backward(V grad_h, V*, V h, V, const V*, const V*, const V*, const V*, V* grad_x,
                                V* grad_gates_h, V*, V*) {
    grad_x[0] = grad_gates_h[0] = grad_h * (1.0f - h * h);
    return V{};
  }
};

struct RnnRelu : BuiltinCell {
  static constexpr int kGates = 1, kSaved = 0;
  static constexpr bool kNeedsH = true;

  // Propagates NaN: the comparison is false for it.
  PRNN_CELL_FUNCTION V forward(const V* gates_x, const V* gates_h, V, V*, const V*, const V*, V*) {
    const V z = gates_x[0] + gates_h[0];
    return z < V{} ? V{} : z;
  }
  PRNN_CELL_FUNCTION V backward(V grad_h, V*, V h, V, const V*, const V*, const V*, const V*, V* grad_x,
                                V* grad_gates_h, V*, V*) {
    grad_x[0] = grad_gates_h[0] = h <= V{} ? V{} : grad_h;
    return V{};
  }
};

// r, z = sigmoid(x + h); n = tanh(x_n + r * h_n), the reset after the matrix product; h = (1 - z) n + z h_prev.
struct Gru : BuiltinCell {
  static constexpr int kGates = 3, kSaved = 4;  // r, z, n, h_n
  static constexpr bool kSplitsGates = true, kNeedsHPrev = true;

  PRNN_CELL_FUNCTION V forward(const V* gates_x, const V* gates_h, V h_prev, V*, const V*, const V*, V* saved) {
    const V r = sigmoid_of(gates_x[0] + gates_h[0]);
    const V z = sigmoid_of(gates_x[1] + gates_h[1]);
    const V n = tanh_of(gates_x[2] + r * gates_h[2]);
    saved[0] = r, saved[1] = z, saved[2] = n, saved[3] = gates_h[2];
    return n + z * (h_prev - n);
  }
  PRNN_CELL_FUNCTION V backward(V grad_h, V*, V, V h_prev, const V*, const V*, const V*, const V* saved, V* grad_x,
                                V* grad_gates_h, V*, V*) {
    const V r = saved[0], z = saved[1], n = saved[2], h_n = saved[3];
    const V grad_n = grad_h * (1.0f - z) * (1.0f - n * n);
    grad_x[0] = grad_gates_h[0] = grad_n * h_n * r * (1.0f - r);
    grad_x[1] = grad_gates_h[1] = grad_h * (h_prev - n) * z * (1.0f - z);
    grad_x[2] = grad_n;
    grad_gates_h[2] = grad_n * r;
    return grad_h * z;
  }
};

// i, f, o = sigmoid; g = tanh; c = f c_prev + i g; h = o tanh(c).
struct Lstm : BuiltinCell {
  static constexpr int kGates = 4, kSaved = 5, kStates = 1;  // i, f, g, o, c
  static PRNN_BOTH constexpr int state_at(int) { return 4; }

  PRNN_CELL_FUNCTION V forward(const V* gates_x, const V* gates_h, V, V* states, const V*, const V*, V* saved) {
    const V i = sigmoid_of(gates_x[0] + gates_h[0]);
    const V f = sigmoid_of(gates_x[1] + gates_h[1]);
    const V g = tanh_of(gates_x[2] + gates_h[2]);
    const V o = sigmoid_of(gates_x[3] + gates_h[3]);
    const V c = states[0] = f * states[0] + i * g;
    saved[0] = i, saved[1] = f, saved[2] = g, saved[3] = o, saved[4] = c;
    return o * tanh_of(c);
  }
  PRNN_CELL_FUNCTION V backward(V grad_h, V* grad_states, V, V, const V* states_prev, const V*, const V*,
                                const V* saved, V* grad_x, V* grad_gates_h, V*, V*) {
    const V i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    const V tanh_c = tanh_of(saved[4]);
    const V d = grad_states[0] + grad_h * o * (1.0f - tanh_c * tanh_c);
    grad_x[0] = grad_gates_h[0] = d * g * i * (1.0f - i);
    grad_x[1] = grad_gates_h[1] = d * states_prev[0] * f * (1.0f - f);
    grad_x[2] = grad_gates_h[2] = d * i * (1.0f - g * g);
    grad_x[3] = grad_gates_h[3] = grad_h * tanh_c * o * (1.0f - o);
    grad_states[0] = d * f;
    return V{};
  }
};
