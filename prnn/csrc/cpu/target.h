// The instruction set of the code between PRNN_TARGET_BEGIN("avx2,fma") and PRNN_TARGET_END. Standard headers must be
// included before: their inline functions belong to the whole program, which must run on any processor. GCC defines no
// macro such as __AVX2__ for a pragma inside a macro: test PRNN_AVX instead.
#pragma once

#include <immintrin.h>

#define PRNN_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define PRNN_TARGET_BEGIN(features) \
  PRNN_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define PRNN_TARGET_END PRNN_PRAGMA(clang attribute pop)
#else
#define PRNN_TARGET_BEGIN(features) PRNN_PRAGMA(GCC push_options) PRNN_PRAGMA(GCC target(features))
#define PRNN_TARGET_END PRNN_PRAGMA(GCC pop_options)
#endif
