#include "timeouts.h"

#include <cmath>
#include <cstdlib>
#include <mutex>
#include <new>
#include <sstream>
#include <stdexcept>

namespace prnn::cuda {

namespace {

constexpr double kDefaultSeconds = 2;

double wait_seconds() {
  const char* value = std::getenv("PRNN_CUDA_WAIT_SECONDS");
  if (!value || !*value) return kDefaultSeconds;
  char* end = nullptr;
  const double seconds = std::strtod(value, &end);
  if (*end || !std::isfinite(seconds) || seconds < 0)
    throw std::runtime_error(std::string("prnn: PRNN_CUDA_WAIT_SECONDS=") + value +
                             ": expected the seconds a kernel may wait, or 0 for no limit");
  return seconds;
}

}  // namespace

WaitLimit wait_limit(const char* cell, const Layer& layer, const Plan& plan, bool backward) {
  WaitLimit limit{};
  const double seconds = wait_seconds(), ticks = seconds * 1e9 / (1 << kTickShift);
  limit.ticks = seconds == 0 || ticks >= kForever ? kForever : static_cast<int32_t>(ticks);
  // A poll of L2 takes about a microsecond: 16 ms. One of an mbarrier lasts until the hardware's time limit, which is
  // undocumented and may be as short as a plain poll: 64 polls of a microsecond or of 10 ms are both acceptable.
  limit.polls = limit.ticks == 0 ? 1 : plan.regime == Regime::grid ? 1 << 14 : 1 << 6;
  limit.launch = {cell,    layer.dtype, plan.regime, backward, plan.blocks * plan.teams * plan.heads,
                  layer.T, layer.B,     layer.H,     seconds};
  return limit;
}

std::string describe(const Launched& launch) {
  static const char* const dtypes[] = {"float32", "bfloat16", "float16"};
  return std::string(launch.cell) + " " + dtypes[int(launch.dtype)] + " T=" + std::to_string(launch.T) +
         " B=" + std::to_string(launch.B) + " H=" + std::to_string(launch.H) +
         (launch.backward ? ", backward, " : ", forward, ") + name_of(launch.regime) + " regime, " +
         std::to_string(launch.blocks) + " blocks";
}

std::atomic<Fault*> record{nullptr};

Fault* record_for_kernels(void* (*allocate)(size_t bytes)) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  if (Fault* const made = record.load()) return made;
  record = new (allocate(sizeof(Fault))) Fault{};
  return record;
}

std::string fault() {
  const Fault* const fault = record;
  if (!fault || *const_cast<const volatile unsigned*>(&fault->state) != Fault::complete) return "";
  std::atomic_thread_fence(std::memory_order_acquire);
  std::ostringstream text;
  text << "prnn: " << describe(fault->launch) << ": block " << fault->block << " waited more than "
       << fault->launch.wait_seconds << " s for ";
  if (fault->piece >= 0) text << "piece " << fault->piece << " of ";
  text << "publication " << fault->publication
       << ", and this process can no longer use its GPU: a debugger or another program on the same GPU may have held "
          "the kernel up (PRNN_CUDA_WAIT_SECONDS=60 lets it wait longer, 0 for ever), or it is a mistake in prnn "
          "(PRNN_BACKEND=torch does without this kernel)";
  return text.str();
}

}  // namespace prnn::cuda
