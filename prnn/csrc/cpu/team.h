// Threads that enter a parallel region once and stay for a whole sequence, meeting at barriers in between.
//
// Nothing is assumed of the region: it may run its ranges on fewer threads than asked for, one after the other on the
// same thread (a nested region, one thread), or start some of them late. The team is therefore whoever has come in
// by the time the first decides not to wait any longer; a range that comes later finds the work taken and leaves.
// Only threads that are running are ever waited for, so nothing can lock up.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace prnn::cpu {

// A member's own progress, on cache lines of its own (two: the neighbour line is prefetched with it).
struct alignas(128) Progress {
  std::atomic<uint32_t> barriers{0};
};

// One thread's place among those that run a layer.
class Member {
 public:
  Member(int64_t rank, int64_t size, Progress* team) : rank(rank), size(size), team_(team) {}

  int64_t rank, size;

  // Returns once every member in [first, last) has called it, this one among them. All members of a layer must meet
  // the same number of times, alone (first + 1 == last) or not.
  void meet(int64_t first, int64_t last) {
    if (last - first > 1) wait(first, last);
  }
  void meet_all() { meet(0, size); }

  // The share of [0, n) of this member among `of` that number it `index`.
  static void share(int64_t n, int64_t index, int64_t of, int64_t& begin, int64_t& end) {
    begin = n * index / of;
    end = n * (index + 1) / of;
  }

 private:
  void wait(int64_t first, int64_t last);

  Progress* team_;
  uint32_t barriers_ = 0;
};

class Team {
 public:
  // `rounds`: how often the team will count its barriers from zero, each on its own part of the progress.
  Team(int64_t asked, int64_t rounds) : asked_(asked), progress_(static_cast<std::size_t>(asked * rounds)) {}

  // Comes in with `share` of the `asked` ranges; the rank in the team, or -1 if it has closed. The first to come in
  // (rank 0) then calls close() and open(), the others wait_until_open().
  int64_t join(int64_t share);
  // Waits for the rest of the asked ranges for `patience_us` microseconds at most. The size of the team from now on.
  int64_t close(double patience_us);
  void open() { open_.store(true, std::memory_order_release); }
  void wait_until_open();

  Progress* progress() { return progress_.data(); }

 private:
  static constexpr int64_t kClosed = int64_t{1} << 32;

  const int64_t asked_;
  std::vector<Progress> progress_;
  std::atomic<int64_t> members_{0};  // plus kClosed once nobody may come in any more
  std::atomic<int64_t> covered_{0};  // ranges that have come in
  std::atomic<bool> open_{false};
};

}  // namespace prnn::cpu
