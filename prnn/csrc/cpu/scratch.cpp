#include "scratch.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "../out_of_memory.h"

namespace prnn::cpu {

namespace {

#ifdef PRNN_POISON_SCRATCH
constexpr bool kPoisons = true;  // and caches nothing: a sanitizer detects overruns of fresh blocks
#else
constexpr bool kPoisons = false;
#endif

constexpr int64_t kHugePage = int64_t{2} << 20;
// From this size on huge pages pay: IRNN, whose output is 10 MB, forward and backward, 16.4 -> 14.8 ms.
constexpr int64_t kWorthHugePages = int64_t{4} << 20;

// A cache of up to `most` bytes, evicting the oldest first. A block serves requests down to a `slack`th of its size.
// The cache is bypassed while the mutex is locked, by another thread or by one that a fork left behind.
class BlockCache {
 public:
  BlockCache(int64_t most, int64_t slack, bool large) : most_(most), slack_(slack), large_(large) {
    kept_.reserve(kBlocks + 1);  // give() must not throw
  }

  // A block that was kept, or one without memory.
  Block take(int64_t bytes) {
    bytes = size_of(bytes);
    if (std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock); lock)
      for (size_t i = kept_.size(); i-- > 0;)  // the latest are more likely to be in the processor's caches
        if (kept_[i].bytes >= bytes && kept_[i].bytes / slack_ <= bytes) {
          const Block block = kept_[i];
          kept_.erase(kept_.begin() + static_cast<std::ptrdiff_t>(i));
          total_ -= block.bytes;
          return block;
        }
    return {nullptr, bytes};
  }

  // Fresh memory; null if there is none.
  Block allocate(int64_t bytes) const {
    bytes = size_of(bytes);
    char* memory = static_cast<char*>(std::aligned_alloc(alignment_of(bytes), static_cast<size_t>(bytes)));
    if (large_ && memory) advise_huge_pages(memory, bytes);
    return {memory, bytes};
  }

  void give(Block block) {
    std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock || block.bytes > most_ || kPoisons) return std::free(block.memory);
    kept_.push_back(block);
    total_ += block.bytes;
    for (; total_ > most_ || kept_.size() > kBlocks; kept_.erase(kept_.begin()))  // evict the oldest
      total_ -= kept_[0].bytes, std::free(kept_[0].memory);
  }

  void clear() {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return;
    for (const Block& block : kept_) std::free(block.memory);
    kept_.clear(), total_ = 0;
  }

 private:
  static constexpr size_t kBlocks = 64;

  size_t alignment_of(int64_t bytes) const { return !large_ ? 64 : bytes < kHugePage ? 4096 : kHugePage; }
  // Scratch memory may be read a cache line past its end.
  int64_t size_of(int64_t bytes) const {
    const int64_t alignment = static_cast<int64_t>(alignment_of(bytes)), spare = large_ ? 0 : 64;
    return (bytes + spare + alignment - 1) / alignment * alignment;
  }

  const int64_t most_, slack_;
  const bool large_;
  std::mutex mutex_;
  std::vector<Block> kept_;
  int64_t total_ = 0;
};

// An eighth of the machine's memory, for the layers of a model, and not more than a gigabyte.
int64_t most_results() {
  const int64_t pages = sysconf(_SC_PHYS_PAGES), bytes = sysconf(_SC_PAGESIZE), most = int64_t{1} << 30;
  return pages > 0 && bytes > 0 ? std::min(pages * bytes / 8, most) : most / 4;
}

// Never destroyed: a thread may still be running when the process exits.
BlockCache& scratch = *new BlockCache(int64_t{64} << 20, 4, false);
BlockCache& results = *new BlockCache(most_results(), 2, true);

// A block that was kept, or a fresh one; what is kept makes room where there is none left.
Block block_of(BlockCache& cache, int64_t bytes) {
  Block block = cache.take(bytes);
  if (!block.memory) block = cache.allocate(bytes);
  if (block.memory) return block;
  scratch.clear(), results.clear();
  block = cache.allocate(bytes);
  if (!block.memory) out_of_memory(static_cast<double>(bytes));
  return block;
}

}  // namespace

Scratch::Scratch(int64_t bytes) : block_(block_of(scratch, bytes)) {
  if (kPoisons) std::memset(block_.memory, 0xFF, static_cast<size_t>(bytes));  // NaN exposes reads before writes
}

Scratch::Scratch(Scratch&& other) noexcept : block_(std::exchange(other.block_, {nullptr, 0})) {}

Scratch& Scratch::operator=(Scratch&& other) noexcept {
  std::swap(block_, other.block_);
  return *this;
}

Scratch::~Scratch() {
  if (block_.memory) scratch.give(block_);
}

void advise_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#ifdef MADV_HUGEPAGE
  if (bytes < kWorthHugePages) return;
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + static_cast<uintptr_t>(bytes)) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // best effort: errors are ignored
#endif
}

Block take_result(int64_t bytes) { return block_of(results, bytes); }

void give_back_result(Block block) {
#ifdef MADV_FREE
  madvise(block.memory, static_cast<size_t>(block.bytes), MADV_FREE);
#endif
  results.give(block);
}

}  // namespace prnn::cpu
