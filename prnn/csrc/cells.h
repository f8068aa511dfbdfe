// The cells' pointwise mathematics, once for every native backend.
//
// V is the type a backend computes with: a float, or a vector of floats with elementwise operators and
// comparison masks. A backend includes this inside its own namespace, after its `tanh_of(V)`; so that each
// instruction set has its own instances. Equations and gate order are torch.nn's.

struct RnnTanh {
  // z [H]: the sum of both gate contributions -> h [H].
  template <class V>
  static inline V forward(V z) {
    return tanh_of(z);
  }
  // grad_h, h [H] -> gradient of z [H].
  template <class V>
  static inline V backward(V grad_h, V h) {
    return grad_h * (1.0f - h * h);
  }
};

struct RnnRelu {
  // A NaN stays a NaN: the comparison is false for it.
  template <class V>
  static inline V forward(V z) {
    return z < V{} ? V{} : z;
  }
  template <class V>
  static inline V backward(V grad_h, V h) {
    return h > V{} ? grad_h : V{};
  }
};
