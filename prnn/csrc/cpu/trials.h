// How many threads run a layer fastest, or whether a stack's layers run at the same time, by trial. A barrier takes 0.1
// us between cores that share a cache and ten times as long between those a virtual machine has been given on two dies,
// or where another program has one of them; that changes from one minute to the next, and no model knows of it. The
// results do not depend on the choice.
#pragma once

#include <cstdint>
#include <mutex>

namespace prnn::cpu {

class Trials {
 public:
  // A choice is a level: all threads (0), half of them (1), a quarter (2) ...; or all layers at the same time (0), or
  // one after the other (1).
  static constexpr int kLevels = 16;  // down to one thread of 32,768

  // The level to run next, of `levels`, for calls of a kind, which `key` identifies; `guess` is that of the cost model.
  int choose(uint64_t key, int levels, int guess);
  // How long that call took.
  void record(uint64_t key, int level, double seconds);

 private:
  static constexpr int64_t kUnmeasured = 1;
  struct Level {
    double seconds = 0;                                      // smoothed
    int64_t visits = 0;                                      // the first fills caches and is not measured
    int64_t idle = 0;                                        // calls since the last visit
    bool known() const { return visits > kUnmeasured + 1; }  // measured twice: one call may have been interrupted
  };
  struct Kind {
    uint64_t key = 0;
    int best = 0;
    Level levels[kLevels];
  };

  Kind& kind_of(uint64_t key) { return kinds_[key % kKinds]; }

  static constexpr uint64_t kKinds = 256;  // the table's size; of two kinds with one place the later one stays
  std::mutex mutex_;
  Kind kinds_[kKinds];
};

}  // namespace prnn::cpu
