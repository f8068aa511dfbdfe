// Which instructions the code between PRNN_TARGET_BEGIN("avx2,fma") and PRNN_TARGET_END may use. The standard headers
// come before: what they define inline belongs to the whole program, which must run on any processor. GCC sets no macro
// such as __AVX2__ for a pragma that comes out of a macro: code that asks which target it is in asks for PRNN_AVX.
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
