#include "scratch.h"

#include <sys/mman.h>
#include <unistd.h>

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

// A cache of up to `most` bytes, evicting the oldest first. A block serves requests down to a `slack`th of its size.
// The cache is bypassed while the mutex is locked, by another thread or by one that a fork left behind.
class BlockCache {
 public:
  BlockCache(int64_t most, int64_t slack, int64_t alignment) : most_(most), slack_(slack), alignment_(alignment) {
    kept_.reserve(kBlocks + 1);  // give() must not throw
  }

  Block take(int64_t bytes) {
    if (std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock); lock)
      for (size_t i = kept_.size(); i-- > 0;)  // the latest are more likely to be in the processor's caches
        if (kept_[i].bytes >= bytes && kept_[i].bytes / slack_ <= bytes) {
          const Block block = kept_[i];
          kept_.erase(kept_.begin() + static_cast<std::ptrdiff_t>(i));
          total_ -= block.bytes;
          return block;
        }
    bytes = (bytes + 64 + alignment_ - 1) / alignment_ * alignment_;
    char* memory = static_cast<char*>(std::aligned_alloc(static_cast<size_t>(alignment_), static_cast<size_t>(bytes)));
    if (!memory) out_of_memory(static_cast<double>(bytes));
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

 private:
  static constexpr size_t kBlocks = 64;
  const int64_t most_, slack_, alignment_;
  std::mutex mutex_;
  std::vector<Block> kept_;
  int64_t total_ = 0;
};

constexpr int64_t kHugePage = int64_t{2} << 20;

// An eighth of the machine's memory, for the results of the layers of a model.
int64_t most_results() {
  const int64_t pages = sysconf(_SC_PHYS_PAGES), bytes = sysconf(_SC_PAGESIZE);
  return pages > 0 && bytes > 0 ? pages * bytes / 8 : int64_t{256} << 20;
}

// Never destroyed: a thread may still be running when the process exits.
BlockCache& cache = *new BlockCache(int64_t{64} << 20, 4, 64);
BlockCache& results = *new BlockCache(most_results(), 2, kHugePage);

}  // namespace

Scratch::Scratch(int64_t bytes) : block_(cache.take(bytes)) {
  if (kPoisons) std::memset(block_.memory, 0xFF, static_cast<size_t>(bytes));  // NaN exposes reads before writes
}

Scratch::Scratch(Scratch&& other) noexcept : block_(std::exchange(other.block_, {nullptr, 0})) {}

Scratch& Scratch::operator=(Scratch&& other) noexcept {
  std::swap(block_, other.block_);
  return *this;
}

Scratch::~Scratch() {
  if (block_.memory) cache.give(block_);
}

Block take_result(int64_t bytes) {
  const Block block = results.take(bytes);
#ifdef MADV_HUGEPAGE
  madvise(block.memory, static_cast<size_t>(block.bytes), MADV_HUGEPAGE);  // best effort: errors are ignored
#endif
  return block;
}

void give_back_result(Block block) {
#ifdef MADV_FREE
  madvise(block.memory, static_cast<size_t>(block.bytes), MADV_FREE);
#endif
  results.give(block);
}

}  // namespace prnn::cpu
