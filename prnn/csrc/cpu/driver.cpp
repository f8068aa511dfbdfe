// The CPU driver: number of threads, team assembly and work assignment.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <type_traits>

#include "kernels.h"
#include "scratch.h"

namespace prnn::cpu {

namespace {

int64_t scratch(const Kernels& kernels, const Forward& pass, const Plan& plan, int64_t members) {
  return kernels.forward_scratch(pass, plan, members);
}
int64_t scratch(const Kernels& kernels, const Backward& pass, const Plan& plan, int64_t members) {
  return kernels.backward_scratch(pass, plan, members);
}
void run(const Kernels& kernels, const Forward& pass, const Plan& plan, char* memory, Member& member) {
  kernels.forward(pass, plan, memory, member);
}
void run(const Kernels& kernels, const Backward& pass, const Plan& plan, char* memory, Member& member) {
  kernels.backward(pass, plan, memory, member);
}

float from_bfloat16(uint16_t half) {
  const uint32_t bits = uint32_t{half} << 16;
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

// Round to nearest, ties to even; a NaN stays a quiet NaN.
uint16_t bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if (x != x) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

// One pass and the members [first, last) of the team that run it.
template <class Pass>
struct Assignment {
  const Pass* pass;
  int64_t first, last;
  Plan plan;
  Scratch memory;
};

// In a child forked from the process that loaded this, the pool's threads may not exist, and waiting for them would
// hang: it runs single-threaded.
const pid_t kLoadedIn = getpid();
bool is_forked() { return getpid() != kLoadedIn; }

// A second thread must save more than its wake-up costs, some 5 us.
constexpr double kWake = 5e-6;

// The work of an assembled team: two passes concurrently, or sequentially with the whole team.
template <class Pass>
class Work {
 public:
  static constexpr bool kBackward = std::is_same_v<Pass, Backward>;

  Work(const Pass* passes, int count, const Kernels& kernels, int64_t threads)
      : passes_(passes), count_(count), kernels_(kernels), stride_(threads) {}

  Plan plan(int i, int64_t members) const { return make_plan(passes_[i], kernels_.lanes, members, kBackward); }

  // Seconds of the serial parts for a team of that size, according to the cost model.
  double seconds(int64_t members) const {
    double whole = 0;
    for (int i = 0; i < count_; ++i) whole += plan(i, members).seconds;
    return std::min(whole, side_by_side(members));
  }

  void assign(int64_t members) {
    const bool concurrent = side_by_side(members) < count_ * plan(0, members).seconds;
    for (int i = 0; i < count_; ++i) {
      const int64_t first = concurrent ? members * i / 2 : 0, last = concurrent ? members * (i + 1) / 2 : members;
      Assignment<Pass>& part = parts_[i];
      part.pass = passes_ + i, part.plan = plan(i, last - first);
      // Threads that the plan does not use return.
      part.first = first, part.last = first + part.plan.batch_groups * part.plan.hidden_groups;
      part.memory = Scratch(scratch(kernels_, passes_[i], part.plan, part.last - part.first));
    }
  }

  void run(int64_t rank, Progress* progress) const {
    // Sequential passes use separate halves of the progress array: a counter belongs to one pass.
    for (int i = 0; i < count_; ++i) {
      const Assignment<Pass>& part = parts_[i];
      if (rank < part.first || rank >= part.last) continue;
      Member member(rank - part.first, part.last - part.first, progress + i * stride_ + part.first);
      prnn::cpu::run(kernels_, *part.pass, part.plan, part.memory.get(), member);
    }
  }

 private:
  double side_by_side(int64_t members) const {
    return count_ == 2 && members >= 2 ? plan(0, members / 2).seconds : 1e300;
  }

  const Pass* passes_;
  const int count_;
  const Kernels& kernels_;
  const int64_t stride_;  // between the counters of two passes
  Assignment<Pass> parts_[2];
};

template <class Pass>
void run_all(const Pass* passes, int count, int64_t threads, const Parallel& parallel) {
  if (is_forked()) threads = 1;
  Work<Pass> work(passes, count, best_kernels(passes[0].dtype), threads);
  const double alone = work.seconds(1);
  if (threads > 1 && alone - work.seconds(threads) < kWake) threads = 1;
  Team team(threads, count);
  std::exception_ptr failure;
  const Body body = [&](int64_t begin, int64_t end) {
    const int64_t rank = team.join(end - begin);
    if (rank < 0) return;
    if (rank == 0) {
      // Waiting longer than a fraction of the work takes would not pay.
      const int64_t size = team.close(std::clamp(alone * 1e6 / 4, 20.0, 2000.0));
      try {
        work.assign(size);
      } catch (...) {
        failure = std::current_exception();
      }
      team.open();
    } else {
      team.wait_until_open();
    }
    if (!failure) work.run(rank, team.progress());
  };
  if (threads > 1)
    parallel(threads, body);
  else
    body(0, 1);
  if (failure) std::rethrow_exception(failure);
}

// From this size on huge pages pay: IRNN, whose output is 10 MB, forward and backward, 16.4 -> 14.8 ms.
constexpr int64_t kWorthHugePages = int64_t{4} << 20;

}  // namespace

void advise_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#ifdef MADV_HUGEPAGE
  if (bytes < kWorthHugePages) return;
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + static_cast<uintptr_t>(bytes)) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // best effort: errors are ignored
#endif
}

const char* instruction_set() { return best_kernels(Dtype::bfloat16).isa; }

void forward(const Forward* passes, int count, int64_t threads, const Parallel& parallel) {
  run_all(passes, count, threads, parallel);
}

void backward(const Backward* passes, int count, int64_t threads, const Parallel& parallel) {
  run_all(passes, count, threads, parallel);
}

void add(Dtype dtype, void* sum, const void* share, int64_t n, const Parallel& parallel) {
  constexpr int64_t kPiece = 1 << 16;  // elements that justify a thread
  const int64_t pieces = (n + kPiece - 1) / kPiece;
  const Body body = [&](int64_t begin, int64_t end) {
    begin *= kPiece, end = std::min(n, end * kPiece);
    if (dtype == Dtype::float32) {
      for (int64_t i = begin; i < end; ++i) static_cast<float*>(sum)[i] += static_cast<const float*>(share)[i];
      return;
    }
    for (int64_t i = begin; i < end; ++i) {
      uint16_t& place = static_cast<uint16_t*>(sum)[i];
      place = bfloat16(from_bfloat16(place) + from_bfloat16(static_cast<const uint16_t*>(share)[i]));
    }
  };
  if (is_forked())
    body(0, pieces);
  else
    parallel(pieces, body);
}

}  // namespace prnn::cpu
