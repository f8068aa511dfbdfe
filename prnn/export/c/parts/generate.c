/* Writes text: ./generate "ROMEO:" [length] [temperature] [top_k] [seed]

   The prompt and then ``length`` tokens (500), each drawn from the softmax of the model's output divided by the
   temperature (0.8; 0: the most probable one), among the ``top_k`` most probable (0: all). The same seed (1) gives the
   same text. */

#include "model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* VOCABULARY */

#define PIECES MODEL_OUTPUT_SIZE

/* The token of the longest piece that ``text`` begins with; -1 where there is none. */
static int longest(const char *text, size_t length) {
  int found = -1;
  for (int i = 0; i < PIECES; i++) {
    const size_t size = piece_sizes[i];
    if (size && size <= length && !memcmp(text, pieces[i], size) && (found < 0 || size > piece_sizes[found])) found = i;
  }
  return found;
}

/* Words stand apart from each other, and from a mark only where it is not after a word. */
static int needs_space(int before, int token) {
#if VOCABULARY_OF_WORDS
  if (before < 0 || !piece_sizes[before] || !piece_sizes[token]) return 0;
  const char last = pieces[before][piece_sizes[before] - 1], first = pieces[token][0];
  return last != '\n' && last != '(' && last != '[' && first != '\n' && !strchr(".,;:!?)]'%", first);
#else
  (void)before, (void)token;
  return 0;
#endif
}

/* From 0 to 1, by the generator xorshift64* (Vigna, 2016). */
static double uniform(uint64_t *random) {
  *random ^= *random >> 12;
  *random ^= *random << 25;
  *random ^= *random >> 27;
  return (double)((*random * UINT64_C(2685821657736338717)) >> 11) / 9007199254740992.0;
}

static int descending(const void *a, const void *b) {
  const float x = *(const float *)a, y = *(const float *)b;
  return (x < y) - (x > y);
}

static int draw(const float *logits, double temperature, int top_k, uint64_t *random) {
  static float sorted[PIECES];
  int most = 0;
  for (int i = 1; i < PIECES; i++) most = logits[i] > logits[most] ? i : most;
  if (temperature <= 0) return most;
  float least = -HUGE_VALF;
  if (top_k > 0 && top_k < PIECES) {
    memcpy(sorted, logits, sizeof(sorted));
    qsort(sorted, PIECES, sizeof(float), descending);
    least = sorted[top_k - 1];
  }
  double sum = 0;
  for (int i = 0; i < PIECES; i++)
    if (logits[i] >= least) sum += exp((double)(logits[i] - logits[most]) / temperature);
  double rest = uniform(random) * sum;
  int drawn = most;
  for (int i = 0; i < PIECES; i++)
    if (logits[i] >= least) {
      drawn = i;
      rest -= exp((double)(logits[i] - logits[most]) / temperature);
      if (rest < 0) break;
    }
  return drawn;
}

/* The number that argument ``place`` is, from 0 to ``most``; ``otherwise`` where it is left out. */
static double number(int count, char **arguments, int place, const char *name, double most, double otherwise) {
  if (count <= place) return otherwise;
  char *rest;
  const double found = strtod(arguments[place], &rest);
  if (rest == arguments[place] || *rest || !(found >= 0 && found <= most)) {
    fprintf(stderr, "generate: %s must be a number from 0 to %.0f, got %s\n", name, most, arguments[place]);
    exit(2);
  }
  return found;
}

int main(int count, char **arguments) {
  if (count > 6 || (count > 1 && !strcmp(arguments[1], "--help"))) {
    fputs("generate PROMPT [length 500] [temperature 0.8] [top_k 0] [seed 1]\n", stderr);
    return 2;
  }
  const char *prompt = count > 1 ? arguments[1] : "";
  const long length = (long)number(count, arguments, 2, "length", 1e9, 500);
  const double temperature = number(count, arguments, 3, "temperature", 1e6, 0.8);
  const int top_k = (int)number(count, arguments, 4, "top_k", 1e9, 0);
  uint64_t random = (uint64_t)number(count, arguments, 5, "seed", 1e15, 1) * UINT64_C(0x9e3779b97f4a7c15) + 1;
  static model_state state;
  static float logits[MODEL_OUTPUT_SIZE];
  int32_t token = START;
  int before = -1;
  model_init(&state);
  if (!*prompt) model_step(&state, &token, logits);
  for (size_t at = 0, size = strlen(prompt); at < size;) {
    const int found = longest(prompt + at, size - at);
    if (found < 0) {
      if (VOCABULARY_OF_WORDS && prompt[at] == ' ') {
        at++;
        continue;
      }
      fprintf(stderr, "generate: the prompt's text from byte %d on is not in the vocabulary: %s\n", (int)at, prompt + at);
      return 2;
    }
    token = (int32_t)found;
    model_step(&state, &token, logits);
    at += piece_sizes[found];
    before = found;
  }
  fputs(prompt, stdout);
  for (long i = 0; i < length; i++) {
    token = (int32_t)draw(logits, temperature, top_k, &random);
    if (needs_space(before, (int)token)) putchar(' ');
    fwrite(pieces[token], 1, piece_sizes[token], stdout);
    before = (int)token;
    model_step(&state, &token, logits);
  }
  putchar('\n');
  return fflush(stdout) ? 1 : 0;
}
