/* y[rows] = W x + bias. W is in panels of 32 rows, then of 8, each column of a panel in a row: the sums of a panel are
   independent, so that compilers make vectors of them without reordering a sum; two columns at once are half the traffic
   where they do not keep the sums in registers. */
static void product(int rows, int columns, const float *restrict weights, const float *restrict bias,
                    const float *restrict x, float *restrict y) {
  int row = 0;
  for (; row + 32 <= rows; row += 32) {
    float sums[32] = {0};
    int j = 0;
    for (; j + 2 <= columns; j += 2, weights += 64)
      for (int i = 0; i < 32; i++) sums[i] += weights[i] * x[j] + weights[32 + i] * x[j + 1];
    for (; j < columns; j++, weights += 32)
      for (int i = 0; i < 32; i++) sums[i] += weights[i] * x[j];
    for (int i = 0; i < 32; i++) y[row + i] = bias ? sums[i] + bias[row + i] : sums[i];
  }
  for (; row < rows; row += 8) {
    float sums[8] = {0};
    for (int j = 0; j < columns; j++, weights += 8)
      for (int i = 0; i < 8; i++) sums[i] += weights[i] * x[j];
    for (int i = 0; i < 8 && row + i < rows; i++) y[row + i] = bias ? sums[i] + bias[row + i] : sums[i];
  }
}

/* The same of whole numbers, each row times its scale; sums are floats. */
static void product_int8(int rows, int columns, const int8_t *restrict weights, const float *restrict scales,
                         const float *restrict bias, const float *restrict x, float *restrict y) {
  int row = 0;
  for (; row + 32 <= rows; row += 32) {
    float sums[32] = {0};
    int j = 0;
    for (; j + 2 <= columns; j += 2, weights += 64)
      for (int i = 0; i < 32; i++) sums[i] += (float)weights[i] * x[j] + (float)weights[32 + i] * x[j + 1];
    for (; j < columns; j++, weights += 32)
      for (int i = 0; i < 32; i++) sums[i] += (float)weights[i] * x[j];
    for (int i = 0; i < 32; i++) y[row + i] = scales[row + i] * sums[i] + (bias ? bias[row + i] : 0.0f);
  }
  for (; row < rows; row += 8) {
    float sums[8] = {0};
    for (int j = 0; j < columns; j++, weights += 8)
      for (int i = 0; i < 8; i++) sums[i] += (float)weights[i] * x[j];
    for (int i = 0; i < 8 && row + i < rows; i++)
      y[row + i] = scales[row + i] * sums[i] + (bias ? bias[row + i] : 0.0f);
  }
}

/* y[count][size] = (x - mean) / sqrt(variance + epsilon) * weight + bias, of each row. */
static void normalise(int count, int size, float epsilon, const float *x, const float *weight, const float *bias,
                      float *y) {
  for (int row = 0; row < count; row++, x += size, y += size) {
    float sum = 0.0f, squares = 0.0f;
    for (int i = 0; i < size; i++) sum += x[i];
    const float mean = sum / (float)size;
    for (int i = 0; i < size; i++) squares += (x[i] - mean) * (x[i] - mean);
    const float scale = 1.0f / sqrt_of(squares / (float)size + epsilon);
    for (int i = 0; i < size; i++) {
      const float centred = (x[i] - mean) * scale;
      y[i] = (weight ? centred * weight[i] : centred) + (bias ? bias[i] : 0.0f);
    }
  }
}

/* y = exp(x) / sum exp(x) of ``size`` elements, ``stride`` apart. */
static void softmax(int size, int stride, const float *x, float *y) {
  float largest = x[0], sum = 0.0f;
  for (int i = 1; i < size; i++) largest = x[i * stride] > largest ? x[i * stride] : largest;
  for (int i = 0; i < size; i++) {
    y[i * stride] = exp_of(x[i * stride] - largest);
    sum += y[i * stride];
  }
  for (int i = 0; i < size; i++) y[i * stride] /= sum;
}

/* y = x - log sum exp(x) of ``size`` elements, ``stride`` apart. */
static void log_softmax(int size, int stride, const float *x, float *y) {
  float largest = x[0], sum = 0.0f;
  for (int i = 1; i < size; i++) largest = x[i * stride] > largest ? x[i * stride] : largest;
  for (int i = 0; i < size; i++) sum += exp_of(x[i * stride] - largest);
  const float shift = log_of(sum);
  for (int i = 0; i < size; i++) y[i * stride] = (x[i * stride] - largest) - shift;
}
