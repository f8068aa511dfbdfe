// The CPU driver: number of threads, team assembly and work assignment.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <exception>
#include <type_traits>
#include <vector>

#include "kernels.h"
#include "parts.h"
#include "rounding.h"
#include "scratch.h"
#include "trials.h"

namespace prnn::cpu {

namespace {

int64_t scratch(const Kernels& kernels, const Forward& pass, const Plan& plan, int64_t members) {
  return kernels.forward_scratch(pass, plan, members);
}
int64_t scratch(const Kernels& kernels, const BackwardPart& part, const Plan& plan, int64_t members) {
  return kernels.backward_scratch(part, plan, members);
}
void run(const Kernels& kernels, const Forward& pass, const Plan& plan, char* memory, Member& member) {
  kernels.forward(pass, plan, memory, member);
}
void run(const Kernels& kernels, const BackwardPart& part, const Plan& plan, char* memory, Member& member) {
  kernels.backward(part, plan, memory, member);
}

// What is run on its own: the forward passes themselves.
class ForwardParts {
 public:
  ForwardParts(const Forward* passes, int count) : passes_(passes), count_(count) {}
  int64_t count() const { return count_; }
  const Forward& operator[](int64_t i) const { return passes_[i]; }
  bool to_add() const { return false; }
  void add_up(const Member&) const {}

 private:
  const Forward* passes_;
  int64_t count_;
};

// And the parts of the backward passes, which are of one shape.
class BackwardParts {
 public:
  BackwardParts(const Backward* passes, int count) : each_(parts_of(passes[0])) {
    for (int i = 0; i < count; ++i) passes_.emplace_back(passes[i], each_);
  }
  int64_t count() const { return static_cast<int64_t>(passes_.size()) * each_; }
  const BackwardPart& operator[](int64_t i) const {
    return passes_[static_cast<size_t>(i / each_)].all()[static_cast<size_t>(i % each_)];
  }
  bool to_add() const { return each_ > 1; }
  void add_up(const Member& member) const {
    for (const Parts& pass : passes_) pass.add_up(member);
  }

 private:
  const int64_t each_;
  std::vector<Parts> passes_;
};

// One part and the members [first, last) of the team that run it.
struct Assignment {
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

// Beyond these, in seconds of a step and of a call, neither a barrier nor a wake-up decides.
constexpr double kManyBarriers = 20e-6, kShort = 2e-3;

// A wavefront is for fewer samples than these, and tried where the model does not see it this much slower.
constexpr int64_t kManySamples = 16;
constexpr double kWorthTrying = 2;

// The work of an assembled team. It is divided into groups of members that run the parts side by side, each group some
// of them one after the other.
template <class AllParts>
class Work {
 public:
  static constexpr bool kBackward = std::is_same_v<AllParts, BackwardParts>;

  Work(const AllParts& parts, const Kernels& kernels) : parts_(parts), kernels_(kernels) {}

  // Seconds of the serial parts for a team of that size, according to the cost model.
  double seconds(int64_t members) const { return seconds(members, groups(members)); }

  // Whether more threads may be slower than fewer, whatever the model says: where they meet every few microseconds, or
  // the work is short.
  bool is_close(int64_t members) const {
    const Plan plan = this->plan(0, members / groups(members));
    const double step = plan.seconds / double(std::max<int64_t>(1, parts_[0].T));
    return (plan.hidden_groups > 1 && step < kManyBarriers) || seconds(1) < kShort;
  }

  void assign(int64_t members) {
    const int64_t groups = this->groups(members), count = parts_.count();
    for (int64_t group = 0; group < groups; ++group) {
      int64_t begin, end, first, last;
      Member::share(count, group, groups, begin, end), Member::share(members, group, groups, first, last);
      for (int64_t i = begin; i < end; ++i) {
        const Plan plan = this->plan(i, last - first);
        // Members that the plan does not use have no part in it.
        const int64_t used = plan.batch_groups * plan.hidden_groups;
        assigned_.push_back({first, first + used, plan, Scratch(scratch(kernels_, parts_[i], plan, used))});
      }
    }
    members_ = members;
  }

  // `stride`: between the counters of two parts.
  void run(int64_t rank, Progress* progress, int64_t stride) const {
    if (rank >= members_) return;
    // Each part has a row of the progress array, and the end another: a counter belongs to one team.
    for (int64_t i = 0; i < parts_.count(); ++i) {
      const Assignment& part = assigned_[static_cast<size_t>(i)];
      if (rank < part.first || rank >= part.last) continue;
      Member member(rank - part.first, part.last - part.first, progress + i * stride + part.first);
      prnn::cpu::run(kernels_, parts_[i], part.plan, part.memory.get(), member);
    }
    if (!parts_.to_add()) return;
    Member member(rank, members_, progress + parts_.count() * stride);
    member.meet_all();
    parts_.add_up(member);
  }

 private:
  Plan plan(int64_t i, int64_t members) const { return make_plan(parts_[i], kernels_.lanes, members, kBackward); }

  double seconds(int64_t members, int64_t groups) const {
    const int64_t rounds = (parts_.count() + groups - 1) / groups;
    return double(rounds) * plan(0, members / groups).seconds;
  }

  // How many groups of members are the fastest; of equals the most, since groups do not wait for each other.
  int64_t groups(int64_t members) const {
    int64_t best = 1;
    for (int64_t groups = 2; groups <= std::min(members, parts_.count()); ++groups)
      if (seconds(members, groups) <= seconds(members, best)) best = groups;
    return best;
  }

  const AllParts& parts_;
  const Kernels& kernels_;
  std::vector<Assignment> assigned_;
  int64_t members_ = 0;
};

// The layers of a stack, each on one thread, a few steps behind the one before it.
template <class Pass>
class Wavefront {
 public:
  static constexpr bool kBackward = std::is_same_v<Pass, Backward>;
  using Own = std::conditional_t<kBackward, BackwardPart, Forward>;

  Wavefront(const Pass* layers, int count, const Kernels& kernels) : kernels_(kernels), handovers_(size_t(count)) {
    for (int i = 0; i < count; ++i) {
      if constexpr (kBackward)
        layers_.push_back(whole(layers[i]));
      else
        layers_.push_back(layers[i]);
    }
  }

  // Of more samples, threads have some each. A layer whose backward pass is in parts has sums of its own for each part.
  static bool is_possible(const Pass* layers, int count) {
    return std::all_of(layers, layers + count, [](const Pass& layer) {
      const bool short_or_wide = layer.T < 2 * Handover::steps_of(layer.B) || layer.B >= kManySamples;
      return !short_or_wide && (!kBackward || parts_of(layer) == 1);
    });
  }

  // According to the cost model.
  double seconds(int64_t members) const {
    double all = 0, longest = 0;
    for (const Own& layer : layers_) {
      const double seconds = plan(layer).seconds;
      all += seconds, longest = std::max(longest, seconds);
    }
    const double rounds = double((count() + members - 1) / members);
    const double piece = double(Handover::steps_of(layers_[0].B)) / double(layers_[0].T);
    const double behind = double(std::min(members, count()) - 1) * piece;
    return std::max(all / double(members), rounds * longest) + longest * behind;
  }

  int64_t count() const { return static_cast<int64_t>(layers_.size()); }

  void assign(int64_t members) {
    for (const Own& layer : layers_) {
      const Plan plan = this->plan(layer);
      assigned_.push_back({0, 1, plan, Scratch(scratch(kernels_, layer, plan, 1))});
    }
    members_ = members;
  }

  // By turns: a layer waits for none that comes later to its own thread.
  void run(int64_t rank, Progress*, int64_t) {
    for (int64_t i = rank; i < count() && rank < members_; i += members_) {
      const size_t at = static_cast<size_t>(i);
      Member member(i ? &handovers_[at - 1] : nullptr, i + 1 < count() ? &handovers_[at] : nullptr, members_);
      prnn::cpu::run(kernels_, layers_[at], assigned_[at].plan, assigned_[at].memory.get(), member);
    }
  }

 private:
  Plan plan(const Own& layer) const {
    Plan plan = make_plan(layer, kernels_.lanes, 1, kBackward);
    if (!kBackward) plan.chunk = std::min(plan.chunk, Handover::steps_of(layer.B));
    return plan;
  }

  const Kernels& kernels_;
  std::vector<Own> layers_;
  std::vector<Handover> handovers_;
  std::vector<Assignment> assigned_;
  int64_t members_ = 0;
};

// T as a power of two: sequences of about one length are of one kind.
int64_t magnitude(int64_t T) {
  int64_t bits = 0;
  while (T >> bits) ++bits;
  return bits;
}

// What calls of a kind have in common: `passes` of one layer or, where it is a stack's, of each of its layers.
uint64_t key_of(const Layer& layer, bool saves, int64_t kind, int64_t passes, int64_t threads) {
  const int64_t traits[] = {kind,
                            passes,
                            threads,
                            static_cast<int64_t>(layer.cell),
                            static_cast<int64_t>(reinterpret_cast<intptr_t>(layer.user)),
                            static_cast<int64_t>(layer.dtype),
                            magnitude(layer.T),
                            layer.B,
                            layer.I,
                            layer.H,
                            layer.K,
                            layer.lengths != nullptr,
                            saves};
  uint64_t key = 14695981039346656037u;  // FNV-1a, by words
  for (const int64_t trait : traits) key = (key ^ static_cast<uint64_t>(trait)) * 1099511628211u;
  return key ^ key >> 32;
}

// Never destroyed, like the pool's threads.
Trials& trials = *new Trials;

// Calls body() and returns its seconds.
template <class Timed>
double seconds_of(const Timed& body) {
  const auto begun = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
}

// Runs `work`, whose serial part takes one thread so many seconds, on `wanted` of the threads. Of more than one but not
// all, the others come too and leave: asked for fewer, a pool may end the threads it spares.
template <class AnyWork>
void run_team(AnyWork& work, double alone, int64_t rounds, int64_t threads, int64_t wanted, const Parallel& parallel) {
  if (wanted == 1) threads = 1;
  Team team(threads, rounds);
  std::exception_ptr failure;
  const Body body = [&](int64_t begin, int64_t end) {
    const int64_t arrival = team.join(begin, end);
    if (arrival < 0) return;
    if (arrival == 0) {
      // Waiting longer than a fraction of the work takes would not pay.
      const int64_t size = team.close(std::clamp(alone * 1e6 / 4, 20.0, 2000.0));
      try {
        work.assign(std::min(size, wanted));
      } catch (...) {
        failure = std::current_exception();
      }
      team.open();
    } else {
      team.wait_until_open();
    }
    if (!failure) work.run(team.rank(arrival), team.progress(), threads);
  };
  if (threads > 1)
    parallel(threads, body);
  else
    body(0, 1);
  if (failure) std::rethrow_exception(failure);
}

template <class AllParts>
void run_all(const AllParts& parts, int64_t threads, const Parallel& parallel) {
  if (is_forked()) threads = 1;
  const auto& first = parts[0];
  Work<AllParts> work(parts, best_kernels(first.dtype));
  const double alone = work.seconds(1);
  int levels = 1;
  while (threads >> levels) ++levels;
  int level = threads > 1 && alone - work.seconds(threads) < kWake ? levels - 1 : 0;
  const bool tries = threads > 1 && chooses_by_trial && work.is_close(threads);
  const uint64_t key = tries ? key_of(first, first.saved, Work<AllParts>::kBackward, parts.count(), threads) : 0;
  if (tries) level = trials.choose(key, levels, level);
  const double seconds =
      seconds_of([&] { run_team(work, alone, parts.count() + 1, threads, threads >> level, parallel); });
  if (tries) trials.record(key, level, seconds / double(std::max<int64_t>(1, first.T)));
}

template <class AllParts, class Pass>
void run_stack(const Pass* layers, int count, int64_t threads, const Parallel& parallel) {
  const auto one_by_one = [&] {
    for (int i = 0; i < count; ++i) run_all(AllParts(layers + i, 1), threads, parallel);
  };
  const int64_t members = std::min<int64_t>(is_forked() ? 1 : threads, count);
  if (members == 1 || !Wavefront<Pass>::is_possible(layers, count)) return one_by_one();
  // The layer at the bottom, whose I may differ from the others'.
  const Pass& first = layers[Wavefront<Pass>::kBackward ? count - 1 : 0];
  const Kernels& kernels = best_kernels(first.dtype);
  double alone = 0, separate = 0;
  for (int i = 0; i < count; ++i) {
    const AllParts parts(layers + i, 1);
    const Work<AllParts> work(parts, kernels);
    alone += work.seconds(1), separate += std::min(work.seconds(1), work.seconds(threads));
  }
  Wavefront<Pass> wavefront(layers, count, kernels);
  const double together = wavefront.seconds(members);
  const bool tries = chooses_by_trial && together < kWorthTrying * separate;
  const uint64_t key = tries ? key_of(first, first.saved, 2 + Wavefront<Pass>::kBackward, count, threads) : 0;
  int level = !chooses_by_trial || together < separate ? 0 : 1;
  if (tries) level = trials.choose(key, 2, level);
  const double seconds = seconds_of([&] {
    if (level == 0)
      run_team(wavefront, alone, 1, threads, members, parallel);
    else
      one_by_one();
  });
  if (tries) trials.record(key, level, seconds / double(first.T));
}

}  // namespace

const char* instruction_set() { return best_kernels(Dtype::bfloat16).isa; }

void forward(const Forward* passes, int count, int64_t threads, const Parallel& parallel) {
  run_all(ForwardParts(passes, count), threads, parallel);
}

void backward(const Backward* passes, int count, int64_t threads, const Parallel& parallel) {
  run_all(BackwardParts(passes, count), threads, parallel);
}

void forward_stack(const Forward* layers, int count, int64_t threads, const Parallel& parallel) {
  run_stack<ForwardParts>(layers, count, threads, parallel);
}

void backward_stack(const Backward* layers, int count, int64_t threads, const Parallel& parallel) {
  run_stack<BackwardParts>(layers, count, threads, parallel);
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
