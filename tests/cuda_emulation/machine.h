// The emulated GPU inside: its fibers and the order they run in, its shared memories and what is known of each word,
// its barriers, and what is under way between blocks.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "emulation.h"

namespace emulation {

constexpr size_t kStack = 128 << 10;
constexpr int kVeryLazy = 32;  // of a late store

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 88172645463325252u) {}
  size_t below(size_t n) {
    state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
    return size_t((state_ * 0x2545F4914F6CDD1Du) >> 33) % n;
  }

 private:
  uint64_t state_;
};

// What a thread knows to have happened: of each thread of its cluster, up to which of its epochs. Threads that come out
// of one barrier know the same and share it.
using Known = std::shared_ptr<const std::vector<uint32_t>>;

struct Fiber {
  ucontext_t context;  // where it starts
  void* resume[5];     // where it goes on
  bool started = false;
  char* stack;
  int block, thread, member;  // member: its number within the cluster
  Known known;
  uint32_t epoch = 1;
  bool ended = false;
  struct Late {
    uint32_t* to;
    uint32_t word;
    int laziness;  // 0: comes any time; else when its thread fences, or when no other of less can come
  };
  std::vector<Late> late;  // its stores to global memory that nobody sees yet
  struct Copy {
    void* to;
    const void* from;
    int bytes;
  };
  std::vector<Copy> copies;  // of its own, into shared memory, that it has not waited for
  void* fake_stack = nullptr;
};

struct Access {
  int member;
  uint32_t epoch;
};

struct Word {
  int writer = -1;
  uint32_t epoch = 0;
  std::vector<Access> readers;  // since then
};

// Fibers that wait for each other.
struct Meeting {
  const char* kind = nullptr;
  std::vector<Fiber*> who;
};

struct Collective : Meeting {
  struct Lane {
    float *acc, *value;
    const uint32_t *a, *b;
    int mask;
  };
  Lane lanes[32];
};

struct Mbarrier {
  int initialiser = -1;
  uint32_t epoch = 0;  // of the initialisation
  int64_t phase = 0, pending = 1, bytes = 0;
  std::vector<uint32_t> gathered, complete;
  std::vector<Fiber*> waiting;
};

struct Block {
  std::vector<char> shared;
  std::vector<Word> words;
  Meeting all;
  std::map<int, Meeting> named;
  std::vector<Collective> warps;
  std::map<int64_t, Mbarrier> barriers;
  int alive;
};

// A store on its way through the cluster.
struct Parcel {
  int block, sender;
  int64_t at, barrier;
  char bytes[16];
  int size;
  Known known;
  uint32_t epoch;
};

char* stack(size_t number);  // of a fiber

class Machine {
 public:
  Machine(const Launch& launch, const std::function<void()>& body)
      : launch_(launch),
        body_(body),
        random_(launch.seed),
        stubborn_(Random(launch.seed + 2).below(2) == 0),
        lazy_ones_(Random(launch.seed + 3).below(2) == 0) {
    const int members = launch.cluster * launch.threads;
    const Known nothing = std::make_shared<std::vector<uint32_t>>(size_t(members), 0u);
    blocks_.resize(size_t(launch.blocks * launch.rows));
    clusters_.resize(size_t(launch.blocks * launch.rows / launch.cluster));
    for (int b = 0; b < launch.blocks * launch.rows; ++b) {
      Block& block = blocks_[size_t(b)];
      block.shared.assign(size_t(launch.shared_bytes), char(0xA5));
      block.words.resize(size_t(launch.shared_bytes) / 4);
      block.warps.resize(size_t(launch.threads) / 32);
      block.alive = launch.threads;
      for (int t = 0; t < launch.threads; ++t) {
        fibers_.push_back(std::make_unique<Fiber>());
        Fiber& fiber = *fibers_.back();
        fiber.block = b, fiber.thread = t, fiber.member = b % launch.cluster * launch.threads + t;
        fiber.known = nothing;
        fiber.stack = stack(fibers_.size() - 1);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack, fiber.context.uc_stack.ss_size = kStack;
        fiber.context.uc_link = nullptr;  // it never returns
        makecontext(&fiber.context, &Machine::enter, 0);
        runnable_.push_back(&fiber);
      }
    }
  }

  std::string run();

  Fiber& now() { return *now_; }
  Block& block() { return blocks_[size_t(now_->block)]; }
  const Launch& launch() const { return launch_; }

  [[noreturn]] void fail(const std::string& what) {
    if (error_.empty())
      error_ = "block " + std::to_string(now_->block) + ", thread " + std::to_string(now_->thread) + ": " + what;
    wait();  // for ever: the scheduler sees the error
    std::abort();
  }

  // Gives way: for good until somebody wakes it, for a while, or until something has changed in global memory.
  void wait() { switch_to_home(); }
  void yield() {
    wake(now_);
    switch_to_home();
  }
  // Lets others overtake, now and then.
  void dawdle() {
    if (random_.below(8) == 0) yield();
  }
  void poll() {
    polling_.push_back(now_);
    switch_to_home();
  }
  void wake(Fiber* fiber) {
    const bool slow = fiber->block == slow_ && (slow_warp_ < 0 || fiber->thread / 32 == slow_warp_);
    (slow ? held_back_ : runnable_).push_back(fiber);
  }

  // The fibers of a meeting know what each of them has done, and go on.
  void release(Meeting& meeting, bool orders = true) {
    if (orders) {
      const Known merged = merge(meeting.who);
      for (Fiber* fiber : meeting.who) fiber->known = merged, ++fiber->epoch;
    }
    for (Fiber* fiber : meeting.who)
      if (fiber != now_) wake(fiber);
    meeting.who.clear(), meeting.kind = nullptr;
  }
  // Returns when `count` fibers have come, the last of them having run `complete`.
  template <class Complete>
  void meet(Meeting& meeting, const char* kind, size_t count, bool orders, const Complete& complete) {
    if (meeting.kind && std::strcmp(meeting.kind, kind))
      fail(std::string("at ") + kind + ", others at " + meeting.kind);
    meeting.kind = kind;
    meeting.who.push_back(now_);
    if (meeting.who.size() < count) return wait();
    complete();
    release(meeting, orders);
    yield();
  }

  void load(const void* from, void* to, int bytes);
  void store(void* to, const void* from, int bytes);
  void copy(void* to, const void* from, int bytes) {
    if (random_.below(2) == 0) return store(to, from, bytes);
    now_->copies.push_back({to, from, bytes});
  }
  void finish_copies() {
    for (const Fiber::Copy& own : now_->copies) store(own.to, own.from, own.bytes);
    now_->copies.clear();
  }
  void send(void* to, const void* from, int bytes, uint64_t* barrier, int rank);
  void late_store(void* to, uint32_t word) {
    int laziness = 0;  // halving: the laziest store may well be lazier than all of the next steps'
    while (random_.below(2) == 0) ++laziness;
    // At few places, always the same, stores come when nothing else can, which may be many steps later. By their offset
    // in a page: addresses differ from run to run.
    if (Random(launch_.seed + reinterpret_cast<uintptr_t>(to) / 4 % 1024).below(256) == 0) laziness += kVeryLazy;
    // In one launch of two ones are the laziest: words that have been cleared, for which nobody waits.
    if (word == 0xFFFFFFFFu && lazy_ones_) laziness += 2 * kVeryLazy;
    now_->late.push_back({static_cast<uint32_t*>(to), word, laziness}), ++late_;
  }
  void fence() {
    while (!now_->late.empty()) arrive(*now_, 0);
    yield();
  }
  uint64_t nanoseconds() const { return nanoseconds_; }
  Meeting& cluster() { return clusters_[size_t(now_->block / launch_.cluster)]; }
  Mbarrier& mbarrier(const uint64_t* barrier) { return block().barriers[offset(barrier)]; }
  void settle(Mbarrier& barrier);
  // Whether a thread that knows this may use the barrier: something orders it after the initialisation.
  bool initialised(const Mbarrier& barrier, int member, const Known& known) const {
    return barrier.initialiser >= 0 && ordered(barrier.initialiser, barrier.epoch, member, known);
  }
  void learn(const std::vector<uint32_t>& news) {
    auto merged = std::make_shared<std::vector<uint32_t>>(*now_->known);
    for (size_t i = 0; i < news.size(); ++i) (*merged)[i] = std::max((*merged)[i], news[i]);
    now_->known = merged;
  }
  void gather(Mbarrier& barrier, const Known& known, int member, uint32_t epoch) {
    if (barrier.gathered.empty()) barrier.gathered.assign(known->size(), 0);
    for (size_t i = 0; i < known->size(); ++i) barrier.gathered[i] = std::max(barrier.gathered[i], (*known)[i]);
    barrier.gathered[size_t(member)] = std::max(barrier.gathered[size_t(member)], epoch);
  }

 private:
  static void enter();
  void switch_to_home();
  void switch_to(Fiber* fiber);
  Known merge(const std::vector<Fiber*>& who) const;
  int64_t offset(const void* p) {
    const int64_t at = static_cast<const char*>(p) - block().shared.data();
    if (at < 0 || at >= launch_.shared_bytes) fail("an address that is not this block's shared memory");
    return at;
  }
  Word* words(int64_t at, int bytes, Block& block) {
    if (at % bytes || at + bytes > launch_.shared_bytes) fail("a misaligned access to shared memory, or one beyond it");
    return block.words.data() + at / 4;
  }
  void written(Block& block, int64_t at, int bytes, int member, uint32_t epoch, const Known& known);
  bool ordered(int member, uint32_t epoch, int own, const Known& known) const {
    return member == own || (*known)[size_t(member)] >= epoch;
  }
  void arrive(Fiber& fiber, size_t i);  // one of its late stores, after those to the same place
  bool arrive_somewhere(int most);
  void deliver(size_t i);
  bool time_passes();

  const Launch launch_;
  const std::function<void()>& body_;
  Random random_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Block> blocks_;
  std::vector<Meeting> clusters_;
  std::vector<Fiber*> runnable_, polling_, held_back_;
  int slow_ = -1, slow_warp_ = -1;  // a block, or one warp of it, whose threads run when no other can
  const bool stubborn_;             // one launch in two: those run when all others have ended or wait for them,
  bool stuck_ = false;              // which may be many steps later; now
  const bool lazy_ones_;            // one launch in two: late_store
  std::vector<Parcel> parcels_;
  size_t late_ = 0, unfinished_ = 0;
  bool changed_ = false;
  uint64_t nanoseconds_ = uint64_t(1) << 40;
  int hours_ = 0;  // that have passed
  std::string error_;
  Fiber* now_ = nullptr;
  void* home_[5];  // where the scheduler goes on
  void* home_fake_stack_ = nullptr;
};

extern Machine* machine;  // the one that runs

}  // namespace emulation
