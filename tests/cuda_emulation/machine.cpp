#include "machine.h"

#include <climits>

#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulation {

Machine* machine = nullptr;

// Stacks outlive a launch: to map and to fault in a thousand of them takes longer than most launches.
char* stack(size_t number) {
  static std::vector<std::unique_ptr<char[]>> stacks;
  while (stacks.size() <= number) stacks.emplace_back(new char[kStack]);
  return stacks[number].get();
}

// An address sanitizer must know which stack is in use.
#if defined(__SANITIZE_ADDRESS__)

namespace {

void leave_for_home(void** fake_stack) {
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
  __sanitizer_start_switch_fiber(fake_stack, bottom, size);
}
void leave_for(const Fiber& fiber, void** fake_stack) {
  __sanitizer_start_switch_fiber(fake_stack, fiber.stack, kStack);
}
void arrive_at(void* fake_stack) { __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr); }

}  // namespace

#else

namespace {

void leave_for_home(void**) {}
void leave_for(const Fiber&, void**) {}
void arrive_at(void*) {}

}  // namespace

#endif

void Machine::enter() {
  arrive_at(nullptr);
  machine->body_();
  Fiber& fiber = machine->now();
  while (!fiber.late.empty()) machine->arrive(fiber, 0);
  if (!fiber.copies.empty()) machine->fail("ends while its copies are under way");
  fiber.ended = true;
  --machine->block().alive;
  --machine->unfinished_;
  machine->switch_to_home();
}

// swapcontext calls the kernel twice to save the signal mask, which was 60 % of the run time, and an address sanitizer
// unpoisons the shadow of a whole stack at each call; it intercepts longjmp too, but not __builtin_longjmp.
#define PRNN_SWITCHES __attribute__((noipa, no_sanitize("address")))

namespace {

// A function of its own: in the one that calls __builtin_setjmp, the compiler takes what follows it for unreachable.
PRNN_SWITCHES void jump(void** to) { __builtin_longjmp(to, 1); }

}  // namespace

PRNN_SWITCHES void Machine::switch_to_home() {
  Fiber* fiber = now_;
  leave_for_home(fiber->ended ? nullptr : &fiber->fake_stack);
  if (!__builtin_setjmp(fiber->resume)) jump(home_);
  arrive_at(fiber->fake_stack);
}

PRNN_SWITCHES void Machine::switch_to(Fiber* fiber) {
  now_ = fiber;
  leave_for(*fiber, &home_fake_stack_);
  if (!__builtin_setjmp(home_)) {
    if (fiber->started) jump(fiber->resume);
    fiber->started = true;
    setcontext(&fiber->context);
  }
  arrive_at(home_fake_stack_);
}

std::string Machine::run() {
  unfinished_ = fibers_.size();
  int idle = 0;
  while (unfinished_ > 0 && error_.empty()) {
    if (late_ && random_.below(16) == 0) arrive_somewhere(0);
    if (!parcels_.empty() && random_.below(16) == 0) deliver(random_.below(parcels_.size()));
    if (!stuck_ && random_.below(2048) == 0) {
      slow_ = int(random_.below(blocks_.size() * 2));  // or none
      slow_warp_ = random_.below(2) == 0 ? -1 : int(random_.below(size_t(launch_.threads) / 32));
      stuck_ = stubborn_ && slow_ < int(blocks_.size());
    }
    if (runnable_.empty() && (stuck_ ? idle > 3 : idle > 0 || random_.below(64) == 0)) {
      std::swap(runnable_, held_back_);
      if (stuck_) stuck_ = false, slow_ = -1, idle = 0;
    }
    if (runnable_.empty()) {
      // Everybody waits. What is under way arrives, some of it; then those who poll look again.
      for (size_t n = random_.below(8) + 1; n && late_; --n)
        if (!arrive_somewhere(0) && parcels_.empty() && !arrive_somewhere(idle > 1 ? INT_MAX : kVeryLazy - 1)) break;
      for (size_t n = random_.below(8) + 1; n && !parcels_.empty(); --n) deliver(random_.below(parcels_.size()));
      idle = changed_ || !runnable_.empty() || (!held_back_.empty() && !stuck_) ? 0 : idle + 1;
      changed_ = false;
      if (idle > 3 && held_back_.empty() && parcels_.empty() && !late_ && !time_passes())
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

// An hour, when all threads wait: those at mbarriers and those that poll look at the clock. False if they have before.
bool Machine::time_passes() {
  constexpr int kLooks = 3;  // one begins to count the time, the next may give up
  if (hours_ == kLooks) return false;
  ++hours_, nanoseconds_ += 3600ull * 1000000000;
  for (Block& block : blocks_)
    for (auto& [at, barrier] : block.barriers) {
      for (Fiber* fiber : barrier.waiting) wake(fiber);
      barrier.waiting.clear();
    }
  return true;
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
  if (!initialised(barrier, parcel.sender, parcel.known)) return complain("comes before its barrier is initialised");
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

// One of the late stores that may come any time; or, where nothing else can happen, one of the least lazy, up to
// `most`. False if there is none.
bool Machine::arrive_somewhere(int most) {
  Fiber* found = nullptr;
  size_t which = 0;
  int least = 1 << 30;
  const size_t start = random_.below(fibers_.size());
  for (size_t n = 0; n < fibers_.size(); ++n) {
    Fiber& fiber = *fibers_[(start + n) % fibers_.size()];
    const size_t count = fiber.late.size(), first = count ? random_.below(count) : 0;
    for (size_t i = 0; i < count; ++i) {
      const size_t at = (first + i) % count;
      if (fiber.late[at].laziness < least) found = &fiber, which = at, least = fiber.late[at].laziness;
      if (least == 0) return arrive(*found, which), true;
    }
  }
  if (!found || least > most) return false;
  return arrive(*found, which), true;
}

std::string launch(const Launch& launch, const std::function<void()>& body) {
  Machine own(launch, body);
  machine = &own;
  const std::string error = own.run();
  machine = nullptr;
  return error;
}

}  // namespace emulation
