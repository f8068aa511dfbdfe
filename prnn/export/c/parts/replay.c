/* Compares the model with the outputs and final states that its training code computed, which are in golden.bin:

     ./replay golden.bin 1e-5

   Every stream of every case, with a state of its own: all frames in one call of model_run, in ten calls, and frame by
   frame with model_step. A line each, with the largest error of the output and of each state, max |a - b| / max |b|; the
   exit status is 1 where one is above the bound, or not a number.

   golden.bin, little-endian: int32 "PRNN", cases, states, floats of each state; then for each case
     int32 frames T, streams B, input size I, output size O, floats of the state S, whether there are resets
     float32 (int32 for tokens) input [T][B][I]
     uint8 resets [T][B], if there are: before this frame the state of the stream is set to its initial value
     float32 states [B][S]; float64 output [T][B][O]; float64 final states [B][S] */

#include "model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC 0x4e4e5250

#if MODEL_TAKES_TOKENS
typedef int32_t element;
#else
typedef float element;
#endif

typedef struct {
  int32_t frames, streams, input_size, output_size, state_floats, has_resets;
} sizes;

static void fail(const char *what) {
  fprintf(stderr, "replay: %s\n", what);
  exit(2);
}

static void *allocated(size_t count, size_t size) {
  void *memory = calloc(count ? count : 1, size);
  if (!memory) fail("out of memory");
  return memory;
}

static void *loaded(FILE *file, size_t count, size_t size) {
  void *memory = allocated(count, size);
  if (fread(memory, size, count, file) != count) fail("the file ends too early");
  return memory;
}

/* The first frame after ``t`` before which the state is reset, or the number of frames. */
static int segment_end(const sizes *s, const uint8_t *resets, int stream, int t) {
  if (!resets) return s->frames;
  for (t++; t < s->frames; t++)
    if (resets[(size_t)t * (size_t)s->streams + (size_t)stream]) return t;
  return s->frames;
}

/* All frames of a stream, at most ``piece`` in a call; 0: frame by frame with model_step. */
static void run(const sizes *s, model_state *state, const element *input, const uint8_t *resets, int stream, int piece,
                float *output) {
#if !MODEL_HAS_STEP
  float *workspace = allocated(MODEL_WORKSPACE(s->frames), sizeof(float));
#endif
  for (int t = 0; t < s->frames;) {
    const int end = segment_end(s, resets, stream, t);
    if (resets && resets[(size_t)t * (size_t)s->streams + (size_t)stream]) model_init(state);
    while (t < end) {
      const element *x = input + (size_t)t * MODEL_INPUT_SIZE;
      float *y = output + (size_t)t * MODEL_OUTPUT_SIZE;
#if MODEL_HAS_STEP
      const int count = piece == 0 ? 1 : end - t < piece ? end - t : piece;
      if (piece == 0)
        model_step(state, x, y);
      else
        model_run(state, count, x, y);
#else
      const int count = end - t;
      (void)piece;
      model_run(state, count, x, y, workspace);
#endif
      t += count;
    }
  }
#if !MODEL_HAS_STEP
  free(workspace);
#endif
}

typedef struct {
  double difference, largest;
} error;

static void compare(error *e, const float *found, size_t stride, const double *expected, size_t expected_stride,
                    size_t count, size_t size) {
  if (e->difference != e->difference) return;
  for (size_t i = 0; i < count; i++)
    for (size_t j = 0; j < size; j++) {
      const double a = (double)found[i * stride + j], b = expected[i * expected_stride + j];
      const double difference = a > b ? a - b : b - a, size_of_b = b < 0 ? -b : b;
      if (difference != difference || difference > e->difference) e->difference = difference;
      if (e->difference != e->difference) return; /* not a number, and stays it */
      if (size_of_b > e->largest) e->largest = size_of_b;
    }
}

static double relative(const error *e) { return e->largest > 0 ? e->difference / e->largest : e->difference; }

int main(int count, char **arguments) {
  if (count != 3) fail("expected two arguments: golden.bin and the bound of the error");
  FILE *file = fopen(arguments[1], "rb");
  if (!file) fail("the first argument is no file that can be read");
  char *rest;
  const double bound = strtod(arguments[2], &rest);
  if (rest == arguments[2] || *rest || !(bound >= 0)) fail("the bound, the second argument, must be a number, as 1e-5");
  int32_t *head = loaded(file, 3, sizeof(int32_t));
  if (head[0] != MAGIC || head[2] < 0) fail("the file is no golden.bin");
  int32_t *state_sizes = loaded(file, (size_t)head[2], sizeof(int32_t));
  double worst = 0;
  int failed = 0;
  for (int32_t c = 0; c < head[1]; c++) {
    sizes *s = loaded(file, 1, sizeof(sizes));
    if (s->input_size != MODEL_INPUT_SIZE || s->output_size != MODEL_OUTPUT_SIZE ||
        s->state_floats != MODEL_STATE_FLOATS)
      fail("the sizes are not those of the model");
    const size_t frames = (size_t)s->frames, streams = (size_t)s->streams, floats = MODEL_STATE_FLOATS;
    element *input = loaded(file, frames * streams * MODEL_INPUT_SIZE, sizeof(element));
    uint8_t *resets = s->has_resets ? loaded(file, frames * streams, 1) : NULL;
    float *states = loaded(file, streams * floats, sizeof(float));
    double *output = loaded(file, frames * streams * MODEL_OUTPUT_SIZE, sizeof(double));
    double *final = loaded(file, streams * floats, sizeof(double));
    element *x = allocated(frames * MODEL_INPUT_SIZE, sizeof(element));
    float *y = allocated(frames * MODEL_OUTPUT_SIZE, sizeof(float));
    float *after = allocated(floats, sizeof(float));
    model_state *state = allocated(1, sizeof(model_state));
    const char *names[] = {"in one call", "in ten calls", "frame by frame"};
    const int pieces[] = {s->frames, (s->frames + 9) / 10, 0};
    for (int way = 0; way < (MODEL_HAS_STEP ? 3 : 1); way++) {
      error of_output = {0, 0};
      error *of_states = allocated((size_t)head[2], sizeof(error));
      for (size_t b = 0; b < streams; b++) {
        for (size_t t = 0; t < frames; t++)
          memcpy(x + t * MODEL_INPUT_SIZE, input + (t * streams + b) * MODEL_INPUT_SIZE,
                 MODEL_INPUT_SIZE * sizeof(element));
        model_init(state);
        memcpy(state, states + b * floats, floats * sizeof(float));
        run(s, state, x, resets, (int)b, pieces[way], y);
        memcpy(after, state, floats * sizeof(float));
        compare(&of_output, y, MODEL_OUTPUT_SIZE, output + b * MODEL_OUTPUT_SIZE, streams * MODEL_OUTPUT_SIZE, frames,
                MODEL_OUTPUT_SIZE);
        for (size_t k = 0, at = 0; k < (size_t)head[2]; at += (size_t)state_sizes[k++])
          compare(&of_states[k], after + at, 0, final + b * floats + at, 0, 1, (size_t)state_sizes[k]);
      }
      double errors[] = {relative(&of_output), 0};
      for (int32_t k = 0; k < head[2]; k++) {
        const double of_state = relative(&of_states[k]);
        if (!(of_state <= errors[1]) && errors[1] == errors[1]) errors[1] = of_state;
      }
      free(of_states);
      for (int k = 0; k < 2; k++) {
        if (!(errors[k] <= bound)) failed = 1;
        if (!(errors[k] <= worst) && worst == worst) worst = errors[k];
      }
      printf("case %d, T=%d, B=%d%s, %s: error %.3g of the output, %.3g of the final states\n", (int)c, (int)s->frames,
             (int)s->streams, s->has_resets ? ", with resets" : "", names[way], errors[0], errors[1]);
    }
    free(s), free(input), free(resets), free(states), free(output), free(final);
    free(x), free(y), free(after), free(state);
  }
  free(head), free(state_sizes);
  fclose(file);
  printf("largest error %.9g, %s the bound %g\n", worst, failed ? "NOT within" : "within", bound);
  return failed;
}
