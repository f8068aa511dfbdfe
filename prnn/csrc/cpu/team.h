// Threads that enter a parallel region once and stay for a whole sequence, synchronised by barriers.
//
// No assumption about the region: it may run its ranges on fewer threads than requested, one after the other on the
// same thread (a nested region, one thread), or start some of them late. The team is therefore the set of threads that
// have joined when the first one stops waiting; later ranges return at once. Only running threads are ever waited for,
// which excludes deadlocks.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace prnn::cpu {

// A member's barrier counter, on separate cache lines (two: the adjacent line is prefetched with it).
struct alignas(128) Progress {
  std::atomic<uint32_t> barriers{0};
};

// How far a layer of a stack has come, for the next one, which runs at the same time on another thread.
struct alignas(128) Handover {
  std::atomic<int64_t> steps{0};

  // The steps handed over at a time: enough rows for a tile, few enough for the next layer to begin soon.
  static int64_t steps_of(int64_t B) { return B > 0 && B < kRows ? kRows / B : 1; }

 private:
  static constexpr int64_t kRows = 16;
};

// One thread of the team that runs a layer.
class Member {
 public:
  Member(int64_t rank, int64_t size, Progress* team) : rank(rank), size(size), team_(team) {}
  // The only one of a layer of a stack: `before` belongs to the layer whose results this one reads, `after` to this
  // one, or they are null at the stack's ends; `threads` run the stack.
  Member(const Handover* before, Handover* after, int64_t threads)
      : rank(0), size(1), team_(nullptr), before_(before), after_(after), threads_(threads) {}

  int64_t rank, size;

  // Whether another layer awaits this one's results, and whether this one awaits another's or its own are awaited: a
  // few steps at a time.
  bool hands_over() const { return after_; }
  bool in_pieces() const { return before_ || after_; }
  // Waits until the layer before this one, if there is one, has done so many of its steps.
  void await(int64_t steps) const;
  // Lets the layer after this one, if there is one, read the results of the first `steps` steps.
  void hand_over(int64_t steps) const;

  // A barrier of the members [first, last), this one among them. All members of a layer must call it the same number
  // of times, alone (first + 1 == last) or not.
  void meet(int64_t first, int64_t last) {
    if (last - first > 1) wait(first, last);
  }
  void meet_all() { meet(0, size); }

  // Part `index` of `of` of the range [0, n).
  static void share(int64_t n, int64_t index, int64_t of, int64_t& begin, int64_t& end) {
    begin = n * index / of;
    end = n * (index + 1) / of;
  }

 private:
  void wait(int64_t first, int64_t last);

  Progress* team_;
  uint32_t barriers_ = 0;
  const Handover* before_ = nullptr;
  Handover* after_ = nullptr;
  int64_t threads_ = 1;
};

class Team {
 public:
  // `rounds`: the number of barrier counts from zero, each on a separate part of the progress array.
  Team(int64_t requested, int64_t rounds)
      : requested_(requested),
        progress_(static_cast<std::size_t>(requested * rounds)),
        begins_(static_cast<std::size_t>(requested)) {}

  // Joins with ranges [begin, end) of those requested; returns the number of those that came before, or -1 if the team
  // is closed. The first (0) must then call close() and open(), the others wait_until_open().
  int64_t join(int64_t begin, int64_t end);
  // Waits at most `timeout_us` microseconds for the remaining ranges; returns the final size of the team.
  int64_t close(double timeout_us);
  void open() { open_.store(true, std::memory_order_release); }
  void wait_until_open();
  // The rank in the open team of the member that arrived as number `arrival`: in the order of the ranges, so that a
  // thread of a pool has the same part in every call, whose data are in its caches, or in its node's memory.
  int64_t rank(int64_t arrival) const;

  Progress* progress() { return progress_.data(); }

 private:
  static constexpr int64_t kClosed = int64_t{1} << 32;
  const int64_t requested_;
  std::vector<Progress> progress_;
  // Where the ranges begin, plus one, in the order of arrival; 0: not known yet.
  std::vector<std::atomic<int64_t>> begins_;
  std::atomic<int64_t> members_{0};  // plus kClosed once the team is closed
  std::atomic<int64_t> covered_{0};  // ranges that have joined
  std::atomic<bool> open_{false};
};

}  // namespace prnn::cpu
