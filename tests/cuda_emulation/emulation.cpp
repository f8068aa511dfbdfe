// What a thread calls: each instruction in terms of the machine.
#include "emulation.h"

#include "machine.h"

namespace emulation {

namespace {

Collective& own_warp() { return machine->block().warps[size_t(machine->now().thread / 32)]; }

// All lanes of a warp, each with what it brings.
template <class Complete>
void together(const char* kind, const Collective::Lane& own, const Complete& complete) {
  Collective& warp = own_warp();
  warp.lanes[machine->now().thread % 32] = own;
  machine->meet(warp, kind, 32, false, [&] { complete(warp.lanes); });
}

}  // namespace

int thread() { return machine->now().thread; }
int block() { return machine->now().block % machine->launch().blocks; }
int grid_row() { return machine->now().block / machine->launch().blocks; }
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

void copy_async(void* to, const void* from, int bytes) { machine->copy(to, from, bytes); }
void copy_async_wait() { machine->finish_copies(); }

bool any_lane(bool x) {
  float own = x;
  Collective::Lane lane{};
  lane.value = &own;
  together("a vote", lane, [](Collective::Lane* lanes) {
    float any = 0;
    for (int i = 0; i < 32; ++i) any += *lanes[i].value;
    for (int i = 0; i < 32; ++i) *lanes[i].value = any;
  });
  return own != 0;
}

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
  if (own.initialiser >= 0) machine->fail("an mbarrier is initialised twice");
  own.initialiser = machine->now().member, own.epoch = machine->now().epoch;
}
void barrier_expect(uint64_t* barrier, int bytes) {
  Mbarrier& own = machine->mbarrier(barrier);
  if (!machine->initialised(own, machine->now().member, machine->now().known) || own.pending != 1)
    machine->fail("an arrival at an mbarrier that expects none");
  own.bytes += bytes, own.pending = 0;
  machine->gather(own, machine->now().known, machine->now().member, machine->now().epoch);
  ++machine->now().epoch;
  machine->settle(own);
}
bool barrier_test(const uint64_t* barrier, int parity) {
  Mbarrier& own = machine->mbarrier(barrier);
  if (!machine->initialised(own, machine->now().member, machine->now().known))
    machine->fail("waits at an mbarrier that is not initialised");
  if (own.phase % 2 == parity) return false;
  machine->learn(own.complete);
  return true;
}
bool barrier_try(uint64_t* barrier, int parity) {
  if (barrier_test(barrier, parity)) return true;
  machine->mbarrier(barrier).waiting.push_back(&machine->now());
  machine->wait();
  return barrier_test(barrier, parity);
}
void remote_store(void* to, const void* from, int bytes, uint64_t* barrier, int rank) {
  machine->send(to, from, bytes, barrier, rank);
  machine->dawdle();
}

void exchange_load(const void* from, uint32_t* to, int words) {
  machine->dawdle();
  std::memcpy(to, from, size_t(words) * 4);
}
void exchange_pause() { machine->poll(); }
void exchange_store(void* to, uint32_t word) {
  machine->late_store(to, word);
  machine->dawdle();
}
void exchange_fence() { machine->fence(); }

uint64_t nanoseconds() { return machine->nanoseconds(); }
void trap() { machine->fail("a trap"); }

float round_to_tf32(float x) {
  if (x != x) return x;
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  bits = (bits + 0x1000) & ~0x1FFFu;  // ties away from zero
  std::memcpy(&x, &bits, 4);
  return x;
}

}  // namespace emulation
