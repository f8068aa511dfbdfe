// Failures, the watchdog, and the switches every part of the test looks at.
#pragma once

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

#include <unistd.h>

namespace prnn::test {

// How much of everything is run: sanitizers and emulators take one case in `thin`, and a sparser sweep.
struct Effort {
  int64_t thin = 1;
};

inline int& failures() {
  static int count = 0;
  return count;
}

inline void fail(const std::string& what) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  std::printf("FAIL %s\n", what.c_str());
  std::fflush(stdout);
  if (++failures() >= 20) {
    std::printf("too many failures, giving up\n");
    std::fflush(stdout);
    _exit(1);
  }
}

inline void expect(bool right, const std::string& what) {
  if (!right) fail(what);
}

// A lock-up is a failure with a message, not a hang: whoever sets the watchdog has `seconds` until he sets it again.
inline void watchdog(unsigned seconds, const std::string& what) {
  static char message[256];
  std::snprintf(message, sizeof(message), "FAIL locked up, or far too slow: %s\n", what.c_str());
  std::signal(SIGALRM, [](int) {
    if (write(STDOUT_FILENO, message, std::strlen(message)) < 0) _exit(4);
    _exit(3);
  });
  alarm(seconds);
}

// xorshift64*: the same numbers everywhere, which the distributions of <random> do not promise.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 0x1234567u) {}
  uint64_t bits() {
    state_ ^= state_ >> 12, state_ ^= state_ << 25, state_ ^= state_ >> 27;
    return state_ * 0x2545F4914F6CDD1Du;
  }
  double uniform(double low, double high) { return low + (high - low) * (double(bits() >> 11) / 9007199254740992.0); }
  int64_t integer(int64_t low, int64_t high) {
    return low + int64_t(bits() >> 33) % (high - low + 1);
  }  // both included
  bool chance(double p) { return uniform(0, 1) < p; }

 private:
  uint64_t state_;
};

}  // namespace prnn::test
