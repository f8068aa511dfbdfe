// The parts of the test program.
#pragma once

#include "check.h"

namespace prnn::test {

void test_reference();
void test_math(const Effort& effort);
void test_simd_math(const Effort& effort);
void test_layers(const Effort& effort);
void test_memory(const Effort& effort);
void test_threads(const Effort& effort);
void test_trials();

}  // namespace prnn::test
