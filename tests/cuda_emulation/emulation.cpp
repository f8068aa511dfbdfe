#include "emulation.h"

#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulation {

namespace {

constexpr size_t kStack = 128 << 10;

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
  ucontext_t context;
  char* stack;
  int block, thread, member;  // member: its number within the cluster
  Known known;
  uint32_t epoch = 1;
  bool ended = false;
  struct Late {
    uint32_t* to;
    uint32_t word;
    bool lazy;  // comes when its thread fences, or when nothing else can happen
  };
  std::vector<Late> late;  // its stores to global memory that nobody sees yet
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
  bool ready = false;
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

// Stacks outlive a launch: to map and to fault in a thousand of them takes longer than most launches.
char* stack(size_t number) {
  static std::vector<std::unique_ptr<char[]>> stacks;
  while (stacks.size() <= number) stacks.emplace_back(new char[kStack]);
  return stacks[number].get();
}

class Machine {
 public:
  Machine(const Launch& launch, const std::function<void()>& body)
      : launch_(launch), body_(body), random_(launch.seed) {
    const int members = launch.cluster * launch.threads;
    const Known nothing = std::make_shared<std::vector<uint32_t>>(size_t(members), 0u);
    blocks_.resize(size_t(launch.blocks));
    clusters_.resize(size_t(launch.blocks / launch.cluster));
    for (int b = 0; b < launch.blocks; ++b) {
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
        fiber.context.uc_link = &home_;
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
  void wake(Fiber* fiber) { (fiber->block == slow_ ? held_back_ : runnable_).push_back(fiber); }

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
  void send(void* to, const void* from, int bytes, uint64_t* barrier, int rank);
  void late_store(void* to, uint32_t word) {
    now_->late.push_back({static_cast<uint32_t*>(to), word, random_.below(4) == 0}), ++late_;
  }
  void fence() {
    while (!now_->late.empty()) arrive(*now_, 0);
    yield();
  }
  Meeting& cluster() { return clusters_[size_t(now_->block / launch_.cluster)]; }
  Mbarrier& mbarrier(const uint64_t* barrier) { return block().barriers[offset(barrier)]; }
  void settle(Mbarrier& barrier);
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
  bool arrive_somewhere(bool lazy);
  void deliver(size_t i);

  const Launch launch_;
  const std::function<void()>& body_;
  Random random_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Block> blocks_;
  std::vector<Meeting> clusters_;
  std::vector<Fiber*> runnable_, polling_, held_back_;
  int slow_ = -1;  // a block whose threads run when no other can
  std::vector<Parcel> parcels_;
  size_t late_ = 0, unfinished_ = 0;
  bool changed_ = false;
  std::string error_;
  Fiber* now_ = nullptr;
  ucontext_t home_;
};

Machine* machine = nullptr;

void Machine::enter() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  machine->body_();
  Fiber& fiber = machine->now();
  while (!fiber.late.empty()) machine->arrive(fiber, 0);
  fiber.ended = true;
  --machine->block().alive;
  --machine->unfinished_;
  machine->switch_to_home();
}

void Machine::switch_to_home() {
  Fiber* own = now_;
#if defined(__SANITIZE_ADDRESS__)
  static const void* bottom = nullptr;
  static size_t size = 0;
  if (!bottom) {
    pthread_attr_t attributes;
    pthread_getattr_np(pthread_self(), &attributes);
    void* low;
    pthread_attr_getstack(&attributes, &low, &size);
    bottom = low;
    pthread_attr_destroy(&attributes);
  }
  __sanitizer_start_switch_fiber(own->ended ? nullptr : &own->fake_stack, bottom, size);
#endif
  swapcontext(&own->context, &home_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(own->fake_stack, nullptr, nullptr);
#endif
}

void Machine::switch_to(Fiber* fiber) {
  now_ = fiber;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack;
  __sanitizer_start_switch_fiber(&fake_stack, fiber->stack, kStack);
#endif
  swapcontext(&home_, &fiber->context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

std::string Machine::run() {
  unfinished_ = fibers_.size();
  int idle = 0;
  while (unfinished_ > 0 && error_.empty()) {
    if (late_ && random_.below(16) == 0) arrive_somewhere(false);
    if (!parcels_.empty() && random_.below(16) == 0) deliver(random_.below(parcels_.size()));
    if (random_.below(2048) == 0) slow_ = int(random_.below(size_t(launch_.blocks) * 2));  // or none
    if (runnable_.empty()) std::swap(runnable_, held_back_);
    if (runnable_.empty()) {
      // Everybody waits. What is under way arrives, some of it; then those who poll look again.
      for (size_t n = random_.below(8) + 1; n && late_; --n)
        if (!arrive_somewhere(false) && parcels_.empty()) arrive_somewhere(true);
      for (size_t n = random_.below(8) + 1; n && !parcels_.empty(); --n) deliver(random_.below(parcels_.size()));
      idle = changed_ || !runnable_.empty() || !held_back_.empty() ? 0 : idle + 1;
      changed_ = false;
      if (idle > 3 && parcels_.empty() && !late_)
        return polling_.empty() ? "all threads wait for each other" : "threads wait for words that nobody writes";
      std::vector<Fiber*> again;
      std::swap(again, polling_);
      for (Fiber* fiber : again) wake(fiber);
      continue;
    }
    if (!polling_.empty() && random_.below(64) == 0) wake(polling_.back()), polling_.pop_back();
    std::swap(runnable_[random_.below(runnable_.size())], runnable_.back());
    Fiber* next = runnable_.back();
    runnable_.pop_back();
    switch_to(next);
  }
  return error_;
}

Known Machine::merge(const std::vector<Fiber*>& who) const {
  auto merged = std::make_shared<std::vector<uint32_t>>(*who.front()->known);
  const void* last = who.front()->known.get();
  for (const Fiber* fiber : who) {
    if (fiber->known.get() != last) {
      last = fiber->known.get();
      for (size_t i = 0; i < merged->size(); ++i) (*merged)[i] = std::max((*merged)[i], (*fiber->known)[i]);
    }
  }
  for (const Fiber* fiber : who) (*merged)[size_t(fiber->member)] = fiber->epoch;
  return merged;
}

void Machine::load(const void* from, void* to, int bytes) {
  const int64_t at = offset(from);
  Word* word = words(at, bytes, block());
  for (int i = 0; i < bytes / 4; ++i) {
    if (word[i].writer < 0) fail("reads shared memory nobody wrote, at " + std::to_string(at + 4 * i));
    if (!ordered(word[i].writer, word[i].epoch, now_->member, now_->known))
      fail("races with a write to shared memory, at " + std::to_string(at + 4 * i));
    std::vector<Access>& readers = word[i].readers;
    const auto own =
        std::find_if(readers.begin(), readers.end(), [&](const Access& a) { return a.member == now_->member; });
    if (own == readers.end())
      readers.push_back({now_->member, now_->epoch});
    else
      own->epoch = now_->epoch;
  }
  std::memcpy(to, block().shared.data() + at, size_t(bytes));
}

void Machine::written(Block& block, int64_t at, int bytes, int member, uint32_t epoch, const Known& known) {
  Word* word = words(at, bytes, block);
  for (int i = 0; i < bytes / 4; ++i) {
    if (word[i].writer >= 0 && !ordered(word[i].writer, word[i].epoch, member, known))
      fail("a write to shared memory races with another, at " + std::to_string(at + 4 * i));
    for (const Access& reader : word[i].readers)
      if (!ordered(reader.member, reader.epoch, member, known))
        fail("a write to shared memory races with a read, at " + std::to_string(at + 4 * i));
    word[i].writer = member, word[i].epoch = epoch;
    word[i].readers.clear();
  }
}

void Machine::store(void* to, const void* from, int bytes) {
  const int64_t at = offset(to);
  written(block(), at, bytes, now_->member, now_->epoch, now_->known);
  std::memcpy(block().shared.data() + at, from, size_t(bytes));
}

void Machine::send(void* to, const void* from, int bytes, uint64_t* barrier, int rank) {
  Parcel parcel;
  parcel.block = now_->block / launch_.cluster * launch_.cluster + rank;
  parcel.sender = now_->member;
  parcel.at = offset(to), parcel.barrier = offset(barrier), parcel.size = bytes;
  std::memcpy(parcel.bytes, from, size_t(bytes));
  parcel.known = now_->known, parcel.epoch = now_->epoch;
  parcels_.push_back(parcel);
  ++now_->epoch;
}

void Machine::deliver(size_t i) {
  std::swap(parcels_[i], parcels_.back());
  const Parcel parcel = parcels_.back();
  parcels_.pop_back();
  Block& block = blocks_[size_t(parcel.block)];
  Fiber* before = now_;
  now_ = fibers_[size_t(parcel.block / launch_.cluster * launch_.cluster * launch_.threads + parcel.sender)].get();
  const auto complain = [&](const std::string& what) {
    if (error_.empty()) error_ = "block " + std::to_string(parcel.block) + ": a store from another block " + what;
  };
  if (block.alive == 0) return complain("comes when it has ended");
  Word* word = block.words.data() + parcel.at / 4;
  for (int k = 0; k < parcel.size / 4; ++k) {
    if (word[k].writer >= 0 && !ordered(word[k].writer, word[k].epoch, parcel.sender, parcel.known))
      return complain("races with a write");
    for (const Access& reader : word[k].readers)
      if (!ordered(reader.member, reader.epoch, parcel.sender, parcel.known)) return complain("races with a read");
    word[k].writer = parcel.sender, word[k].epoch = parcel.epoch;
    word[k].readers.clear();
  }
  std::memcpy(block.shared.data() + parcel.at, parcel.bytes, size_t(parcel.size));
  Mbarrier& barrier = block.barriers[parcel.barrier];
  if (!barrier.ready) return complain("comes before its barrier is initialised");
  gather(barrier, parcel.known, parcel.sender, parcel.epoch);
  barrier.bytes -= parcel.size;
  settle(barrier);
  now_ = before;
}

void Machine::settle(Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  ++barrier.phase, barrier.pending = 1;
  barrier.complete = barrier.gathered;
  for (Fiber* fiber : barrier.waiting) wake(fiber);
  barrier.waiting.clear();
}

void Machine::arrive(Fiber& fiber, size_t i) {
  // Stores of one thread to one place keep their order.
  size_t first = 0;
  while (fiber.late[first].to != fiber.late[i].to) ++first;
  *fiber.late[first].to = fiber.late[first].word;
  fiber.late.erase(fiber.late.begin() + std::ptrdiff_t(first));
  --late_;
  changed_ = true;
}

// One of the late stores; false if there is none of that kind.
bool Machine::arrive_somewhere(bool lazy) {
  const size_t start = random_.below(fibers_.size());
  for (size_t n = 0; n < fibers_.size(); ++n) {
    Fiber& fiber = *fibers_[(start + n) % fibers_.size()];
    const size_t count = fiber.late.size(), first = count ? random_.below(count) : 0;
    for (size_t i = 0; i < count; ++i)
      if (fiber.late[(first + i) % count].lazy == lazy) return arrive(fiber, (first + i) % count), true;
  }
  return false;
}

Collective& own_warp() { return machine->block().warps[size_t(machine->now().thread / 32)]; }

// All lanes of a warp, each with what it brings.
template <class Complete>
void together(const char* kind, const Collective::Lane& own, const Complete& complete) {
  Collective& warp = own_warp();
  warp.lanes[machine->now().thread % 32] = own;
  machine->meet(warp, kind, 32, false, [&] { complete(warp.lanes); });
}

}  // namespace

std::string launch(const Launch& launch, const std::function<void()>& body) {
  Machine own(launch, body);
  machine = &own;
  const std::string error = own.run();
  machine = nullptr;
  return error;
}

int thread() { return machine->now().thread; }
int block() { return machine->now().block; }
int blocks() { return machine->launch().blocks; }
char* shared_memory() { return machine->block().shared.data(); }

void sync_block() {
  machine->meet(machine->block().all, "__syncthreads", size_t(machine->launch().threads), true, [] {});
}
void sync_named(int id, int count) {
  if (id < 1 || id > 15 || count % 32) machine->fail("no such named barrier");
  machine->meet(machine->block().named[id], "a named barrier", size_t(count), true, [] {});
}
void sync_warp() {
  machine->meet(own_warp(), "__syncwarp", 32, true, [] {});
}
void sync_cluster() {
  const Launch& launch = machine->launch();
  machine->meet(machine->cluster(), "the cluster's barrier", size_t(launch.cluster * launch.threads), true, [] {});
}

void shared_load(const void* from, void* to, int bytes) { machine->load(from, to, bytes); }
void shared_store(void* to, const void* from, int bytes) { machine->store(to, from, bytes); }

float shuffle_xor(float x, int mask) {
  float own = x;
  Collective::Lane lane{};
  lane.value = &own, lane.mask = mask;
  together("a shuffle", lane, [](Collective::Lane* lanes) {
    float before[32];
    for (int i = 0; i < 32; ++i) before[i] = *lanes[i].value;
    for (int i = 0; i < 32; ++i) *lanes[i].value = before[i ^ lanes[i].mask];
  });
  return own;
}

void multiply_tile(float* acc, const uint32_t* a, const uint32_t* b, int depth, float (*decode)(uint32_t)) {
  Collective::Lane lane{};
  lane.acc = acc, lane.a = a, lane.b = b;
  together("mma", lane, [=](Collective::Lane* lanes) {
    float A[16][16], B[16][8];
    // Where the PTX ISA says that the elements of a lane's words stand: "Matrix fragments for mma.m16n8k16", "... k8".
    for (int i = 0; i < 32; ++i) {
      const int g = i / 4, t = i % 4, each = depth / 8;
      for (int word = 0; word < 4; ++word)
        for (int e = 0; e < each; ++e)
          A[g + word % 2 * 8][word / 2 * depth / 2 + t * each + e] = decode(lanes[i].a[word] >> 16 * e);
      for (int word = 0; word < 2; ++word)
        for (int e = 0; e < each; ++e) B[word * depth / 2 + t * each + e][g] = decode(lanes[i].b[word] >> 16 * e);
    }
    for (int i = 0; i < 32; ++i)
      for (int c = 0; c < 4; ++c) {
        const int row = i / 4 + c / 2 * 8, column = i % 4 * 2 + c % 2;
        float sum = 0;
        for (int k = 0; k < depth; ++k) sum += A[row][k] * B[k][column];
        lanes[i].acc[c] += sum;
      }
  });
}

void barrier_init(uint64_t* barrier) {
  Mbarrier& own = machine->mbarrier(barrier);
  if (own.ready) machine->fail("an mbarrier is initialised twice");
  own.ready = true;
}
void barrier_expect(uint64_t* barrier, int bytes) {
  Mbarrier& own = machine->mbarrier(barrier);
  if (!own.ready || own.pending != 1) machine->fail("an arrival at an mbarrier that expects none");
  own.bytes += bytes, own.pending = 0;
  machine->gather(own, machine->now().known, machine->now().member, machine->now().epoch);
  ++machine->now().epoch;
  machine->settle(own);
}
void barrier_wait(uint64_t* barrier, int parity) {
  Mbarrier& own = machine->mbarrier(barrier);
  if (!own.ready) machine->fail("waits at an mbarrier that is not initialised");
  while (own.phase % 2 == parity) {
    own.waiting.push_back(&machine->now());
    machine->wait();
  }
  machine->learn(own.complete);
}
void remote_store(void* to, const void* from, int bytes, uint64_t* barrier, int rank) {
  machine->send(to, from, bytes, barrier, rank);
  machine->dawdle();
}

void exchange_load(const void* from, uint32_t* to, int words) {
  machine->poll();
  std::memcpy(to, from, size_t(words) * 4);
}
void exchange_store(void* to, uint32_t word) {
  machine->late_store(to, word);
  machine->dawdle();
}
void exchange_fence() { machine->fence(); }

float round_to_tf32(float x) {
  if (x != x) return x;
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  bits = (bits + 0x1000) & ~0x1FFFu;  // ties away from zero
  std::memcpy(&x, &bits, 4);
  return x;
}

}  // namespace emulation
