#include "scratch.h"

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

// A cache of up to kMost bytes, evicting the oldest first. It is bypassed while the mutex is locked, by another thread
// or by one that a fork left behind.
class BlockCache {
 public:
  BlockCache() { kept_.reserve(kBlocks + 1); }  // give() must not throw

  Block take(int64_t bytes) {
    if (std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock); lock)
      for (size_t i = 0; i < kept_.size(); ++i)
        if (kept_[i].bytes >= bytes && kept_[i].bytes / 4 <= bytes) {
          const Block block = kept_[i];
          kept_.erase(kept_.begin() + static_cast<std::ptrdiff_t>(i));
          total_ -= block.bytes;
          return block;
        }
    bytes = (bytes + 127) / 64 * 64;
    char* memory = static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(bytes)));
    if (!memory) out_of_memory(static_cast<double>(bytes));
    return {memory, bytes};
  }

  void give(Block block) {
    std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock || block.bytes > kMost || kPoisons) return std::free(block.memory);
    kept_.push_back(block);
    total_ += block.bytes;
    for (; total_ > kMost || kept_.size() > kBlocks; kept_.erase(kept_.begin()))  // evict the oldest
      total_ -= kept_[0].bytes, std::free(kept_[0].memory);
  }

 private:
  static constexpr int64_t kMost = int64_t{64} << 20;
  static constexpr size_t kBlocks = 8;
  std::mutex mutex_;
  std::vector<Block> kept_;
  int64_t total_ = 0;
};

// Never destroyed: a thread may still be running when the process exits.
BlockCache& cache = *new BlockCache;

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

}  // namespace prnn::cpu
