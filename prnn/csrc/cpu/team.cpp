#include "team.h"

#include <chrono>
#include <thread>

namespace prnn::cpu {

namespace {

// Back-off between two polls of another core's counter. After a while it yields the core: with more threads than cores
// the awaited thread may need it.
class Spin {
 public:
  void operator()() {
    if (++count_ > 2000) {
      std::this_thread::yield();
      return;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
  }

 private:
  int count_ = 0;
};

}  // namespace

void Member::wait(int64_t first, int64_t last) {
  ++barriers_;
  team_[rank].barriers.store(barriers_, std::memory_order_release);
  for (int64_t other = first; other < last; ++other) {
    // The difference is modulo 2^32, so the counters may wrap.
    Spin spin;
    while (static_cast<int32_t>(team_[other].barriers.load(std::memory_order_acquire) - barriers_) < 0) spin();
  }
}

int64_t Team::join(int64_t share) {
  int64_t members = members_.load(std::memory_order_relaxed);
  do {
    if (members & kClosed) return -1;
  } while (!members_.compare_exchange_weak(members, members + 1, std::memory_order_acq_rel));
  covered_.fetch_add(share, std::memory_order_acq_rel);
  return members;
}

int64_t Team::close(double timeout_us) {
  if (covered_.load(std::memory_order_acquire) < requested_) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::nanoseconds(int64_t(1e3 * timeout_us));
    Spin spin;
    while (covered_.load(std::memory_order_acquire) < requested_ && std::chrono::steady_clock::now() < deadline) spin();
  }
  return members_.fetch_or(kClosed, std::memory_order_acq_rel);
}

void Team::wait_until_open() {
  Spin spin;
  while (!open_.load(std::memory_order_acquire)) spin();
}

}  // namespace prnn::cpu
