#include "team.h"

#include <chrono>
#include <thread>

namespace prnn::cpu {

namespace {

// Back-off between two polls of another thread's counter. None at first: a pause delays what arrives within 0.1 us, as
// a barrier's other side mostly does. After a while it yields the core, which the awaited thread may need; at once
// where there are more `threads` than the machine has cores. (Not those this thread may use: OpenMP may have bound each
// thread to one.)
class Spin {
 public:
  explicit Spin(int64_t threads) : polls_(cores() != 0 && threads > cores() ? 0 : 2000) {}

  void operator()() {
    if (++count_ > polls_) {
      std::this_thread::yield();
      return;
    }
#if defined(__x86_64__)
    if (count_ > kEager) __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
  }

 private:
  static constexpr int kEager = 200;  // polls, some 1 us

  static int64_t cores() {
    static const int64_t count = std::thread::hardware_concurrency();  // 0: unknown
    return count;
  }

  const int polls_;
  int count_ = 0;
};

}  // namespace

void Member::wait(int64_t first, int64_t last) {
  ++barriers_;
  team_[rank].barriers.store(barriers_, std::memory_order_release);
  for (int64_t other = first; other < last; ++other) {
    // The difference is modulo 2^32, so the counters may wrap.
    Spin spin(size);
    while (static_cast<int32_t>(team_[other].barriers.load(std::memory_order_acquire) - barriers_) < 0) spin();
  }
}

void Member::await(int64_t steps) const {
  Spin spin(threads_);
  while (before_ && before_->steps.load(std::memory_order_acquire) < steps) spin();
}

void Member::hand_over(int64_t steps) const {
  if (after_) after_->steps.store(steps, std::memory_order_release);
}

int64_t Team::join(int64_t begin, int64_t end) {
  int64_t members = members_.load(std::memory_order_relaxed);
  do {
    if (members & kClosed) return -1;
  } while (!members_.compare_exchange_weak(members, members + 1, std::memory_order_acq_rel));
  begins_[static_cast<std::size_t>(members)].store(begin + 1, std::memory_order_release);
  covered_.fetch_add(end - begin, std::memory_order_acq_rel);
  return members;
}

int64_t Team::close(double timeout_us) {
  if (covered_.load(std::memory_order_acquire) < requested_) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::nanoseconds(int64_t(1e3 * timeout_us));
    Spin spin(requested_);
    while (covered_.load(std::memory_order_acquire) < requested_ && std::chrono::steady_clock::now() < deadline) spin();
  }
  return members_.fetch_or(kClosed, std::memory_order_acq_rel);
}

int64_t Team::rank(int64_t arrival) const {
  const int64_t members = members_.load(std::memory_order_acquire) & ~kClosed;
  const auto begin = [&](int64_t other) {
    Spin spin(requested_);
    int64_t found;
    while ((found = begins_[static_cast<std::size_t>(other)].load(std::memory_order_acquire)) == 0) spin();
    return found;
  };
  int64_t rank = 0;
  // Empty ranges may begin where others do.
  for (int64_t other = 0; other < members; ++other)
    rank += begin(other) < begin(arrival) || (begin(other) == begin(arrival) && other < arrival);
  return rank;
}

void Team::wait_until_open() {
  Spin spin(requested_);
  while (!open_.load(std::memory_order_acquire)) spin();
}

}  // namespace prnn::cpu
