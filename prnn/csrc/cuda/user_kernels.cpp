#include "user_kernels.h"

#include <algorithm>
#include <deque>
#include <map>
#include <mutex>
#include <tuple>

#include "driver.h"
#include "recurrence.h"
#include "timeouts.h"

namespace prnn::cuda {

namespace {

using driver::api;
using driver::check;

struct Kernel {
  driver::Handle function;
  int registers, resident;
};

std::mutex mutex;                     // of the two below
std::deque<UserCudaCell> cells;       // never removed: a graph may still hold a number
std::map<KernelKey, Kernel> kernels;  // never unloaded

std::optional<Kernel> find(const KernelKey& key) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = kernels.find(key);
  return found == kernels.end() ? std::nullopt : std::optional(found->second);
}

Kernel loaded(const KernelKey& key) {
  if (const std::optional<Kernel> kernel = find(key)) return *kernel;
  throw KernelNotLoaded("prnn: kernel not loaded: " + std::to_string(static_cast<int>(key.scheme)) + " " +
                        std::to_string(key.backward) + " " + std::to_string(key.shape));
}

// A model in which the resident fragments of one kernel are those it was compiled with.
CellModel with_resident(CellModel model, const KernelKey& key, int resident) {
  model.resident[static_cast<int>(key.scheme)][key.dtype == Dtype::float32][key.backward][key.shape] = resident;
  return model;
}

// The device's primary context, which is torch's: a new thread has none yet, and another library may have set its own.
void make_current(int device) {
  static std::mutex of_contexts;
  static std::map<int, driver::Handle> primary;
  const std::string what = "prnn: device " + std::to_string(device);
  const std::lock_guard<std::mutex> lock(of_contexts);
  auto found = primary.find(device);
  if (found == primary.end()) {
    int handle = 0;
    driver::Handle context = nullptr;
    check(api().cuInit(0), what);
    check(api().cuDeviceGet(&handle, device), what);
    check(api().cuDevicePrimaryCtxRetain(&context, handle), what);
    found = primary.emplace(device, context).first;
  }
  driver::Handle current = nullptr;
  check(api().cuCtxGetCurrent(&current), what);
  if (current != found->second) check(api().cuCtxSetCurrent(found->second), what);
}

// While a stream captures a graph, calls that are not part of it are forbidden otherwise.
class Relaxed {
 public:
  Relaxed() { check(api().cuThreadExchangeStreamCaptureMode(&mode_), "prnn: the CUDA driver"); }
  ~Relaxed() { api().cuThreadExchangeStreamCaptureMode(&mode_); }
  Relaxed(const Relaxed&) = delete;
  Relaxed& operator=(const Relaxed&) = delete;

 private:
  int mode_ = driver::kRelaxed;
};

int attribute_of(int device, int which) {
  const std::string what = "prnn: asking for device " + std::to_string(device);
  int handle = 0, value = 0;
  check(api().cuInit(0), what);
  check(api().cuDeviceGet(&handle, device), what);
  check(api().cuDeviceGetAttribute(&value, which, handle), what);
  return value;
}

// A function of a compiled image, with its limits of shared memory and cluster size raised to the maximum.
driver::Handle function_of(const void* image, const char* name, int device) {
  const std::string what = std::string("prnn: loading ") + name;
  make_current(device);
  const Relaxed relaxed;
  driver::Handle module = nullptr, function = nullptr;
  check(api().cuModuleLoadData(&module, image), what);
  check(api().cuModuleGetFunction(&function, module, name), what);
  check(api().cuFuncSetAttribute(function, driver::kMostDynamicSharedBytes,
                                 attribute_of(device, driver::kMostSharedBytes)),
        what);
  if (attribute_of(device, driver::kCapabilityMajor) >= 9)
    check(api().cuFuncSetAttribute(function, driver::kNonPortableClusterSize, 1), what);
  return function;
}

void* mapped(size_t bytes) {
  const Relaxed relaxed;
  void* memory = nullptr;
  check(api().cuMemHostAlloc(&memory, bytes, driver::kPortable | driver::kDeviceMap),
        "prnn: memory for what a kernel records");
  return memory;
}

driver::LaunchConfig config_of(const Plan& plan, int heads, int shared_bytes, driver::LaunchAttribute& attribute) {
  driver::LaunchConfig config{};
  config.grid_x = static_cast<unsigned>(plan.blocks * plan.teams), config.grid_y = static_cast<unsigned>(heads);
  config.block_x = kThreads, config.block_y = config.block_z = config.grid_z = 1;
  config.shared_bytes = static_cast<unsigned>(shared_bytes);
  config.attributes = &attribute;
  if (plan.regime == Regime::cluster) {
    attribute.id = driver::LaunchAttribute::kClusterDimension;
    attribute.value.cluster = {static_cast<unsigned>(plan.blocks), 1, 1};
    config.attribute_count = 1;
  } else if (plan.regime == Regime::grid) {
    attribute.id = driver::LaunchAttribute::kCooperative;  // all blocks wait for each other, so all must be resident
    attribute.value.cooperative = 1;
    config.attribute_count = 1;
  }
  return config;
}

template <class Pass>
void launch_all(int64_t number, const Pass* passes, int count, Plan plan, bool backward, int device, void* workspace,
                void* stream) {
  const Layer& layer = passes[0];
  if (layer.B == 0 || layer.H == 0) return;
  for (int d = 0; d < count && layer.T > 1; ++d) check_steps(passes[d]);
  const UserCudaCell& cell = user_cuda_cell(number);
  const KernelKey key{number, device, layer.dtype, plan.scheme, backward, plan.shape};
  const Kernel kernel = loaded(key);
  make_current(device);
  const CellModel model = with_resident(cell.model, key, kernel.resident);
  const Recurrence of{model, layer.dtype, layer.B, layer.H, backward, plan.tf32, layer.K};
  const SharedMemory shared = shared_memory_of(plan, of);
  WaitLimit limit = wait_limit(cell.name.c_str(), layer, plan, backward);
  const std::string what = "prnn: " + describe(limit.launch);
  if (const std::string earlier = fault(); !earlier.empty()) throw std::runtime_error(earlier);
  limit.fault = record_for_kernels(mapped);
  const int heads = static_cast<int>(of.heads());
  for (int first = 0; first < count; first += plan.directions)
    for (int head = 0; head < heads; head += plan.heads) {
      const int now = std::min(plan.heads, heads - head);
      driver::LaunchAttribute attribute{};
      driver::LaunchConfig config = config_of(plan, now, shared.total, attribute);
      config.stream = stream;
      if (plan.regime == Regime::grid) {
        const auto slot = static_cast<size_t>(shared.state_size), teams = static_cast<size_t>(plan.teams * now);
        check(api().cuMemsetD2D32Async(workspace, kSlots * slot, 0xFFFFFFFFu, kCleared * slot / 4, teams, stream),
              what);
      }
      Directions<Pass> directions{{passes[first], passes[first + plan.directions - 1]}, head};
      void* arguments[] = {&plan, &limit, &directions, &workspace};
      check(api().cuLaunchKernelEx(&config, kernel.function, arguments, nullptr), what);
    }
}

}  // namespace

bool operator<(const KernelKey& a, const KernelKey& b) {
  const auto tuple = [](const KernelKey& key) {
    return std::make_tuple(key.cell, key.device, key.dtype, key.scheme, key.backward, key.shape);
  };
  return tuple(a) < tuple(b);
}

int64_t define_user_cell(const std::string& name, const CellRow& row) {
  const std::lock_guard<std::mutex> lock(mutex);
  UserCudaCell& cell = cells.emplace_back();
  cell.name = name, cell.row = row;
  cell.row.name = cell.name.c_str();
  cell.model = model_of_user_cell(cell.row);
  return kCellCount + static_cast<int64_t>(cells.size()) - 1;
}

bool is_user_cell(int64_t number) { return !is_cell(number); }

const UserCudaCell& user_cuda_cell(int64_t number) {
  const std::lock_guard<std::mutex> lock(mutex);
  const int64_t index = number - kCellCount;
  if (index < 0 || index >= static_cast<int64_t>(cells.size()))
    throw std::runtime_error("prnn_native: there is no such cell");
  return cells[static_cast<size_t>(index)];
}

void load_kernel(const KernelKey& key, int resident, const void* image) {
  if (find(key)) return;
  Kernel kernel{function_of(image, "prnn_user_kernel", key.device), 0, resident};
  check(api().cuFuncGetAttribute(&kernel.registers, driver::kRegisters, kernel.function), "prnn");
  const std::lock_guard<std::mutex> lock(mutex);
  kernels.emplace(key, kernel);
}

std::optional<Plan> make_user_plan(int64_t cell, const Recurrence& of, int directions, const Device& limits,
                                   const PlanFilter& filter, int device) {
  CellModel model = of.cell;
  for (;;) {  // at most once for each of its kernels
    const Recurrence now{model, of.dtype, of.B, of.H, of.backward, of.tf32, of.K};
    const std::optional<Plan> plan = make_plan(now, directions, limits, filter);
    if (!plan) return plan;
    const KernelKey key{cell, device, of.dtype, plan->scheme, of.backward, plan->shape};
    const int resident = loaded(key).resident;
    if (resident == resident_fragments(*plan, now)) return plan;
    model = with_resident(model, key, resident);
  }
}

void run_user(int64_t cell, const Forward* passes, int count, const Plan& plan, int device, void* workspace,
              void* stream) {
  launch_all(cell, passes, count, plan, false, device, workspace, stream);
}
void run_user(int64_t cell, const SerialBackward* passes, int count, const Plan& plan, int device, void* workspace,
              void* stream) {
  launch_all(cell, passes, count, plan, true, device, workspace, stream);
}

std::string describe_user(int64_t cell, const Plan& plan, const Recurrence& of, int device) {
  const KernelKey key{cell, device, of.dtype, plan.scheme, of.backward, plan.shape};
  const Kernel kernel = loaded(key);
  const CellModel model = with_resident(of.cell, key, kernel.resident);
  const Recurrence now{model, of.dtype, of.B, of.H, of.backward, of.tf32, of.K};
  return describe(plan, shared_memory_of(plan, now), kernel.registers);
}

int architecture(int device) {
  return attribute_of(device, driver::kCapabilityMajor) * 10 + attribute_of(device, driver::kCapabilityMinor);
}

const Device& device_limits_of_driver(int index, const void* probe) {
  static std::mutex of_limits;
  static std::map<int, Device> known;
  const std::lock_guard<std::mutex> lock(of_limits);
  if (const auto entry = known.find(index); entry != known.end()) return entry->second;
  if (!probe) throw std::runtime_error("prnn_native: the limits of this device have not been asked for");
  Device device{};
  device.multiprocessors = attribute_of(index, driver::kMultiprocessors);
  device.shared_memory = attribute_of(index, driver::kMostSharedBytes);
  device.clock_ghz = attribute_of(index, driver::kClockRate) * 1e-6;
  if (architecture(index) >= 90) {
    // The number of concurrent clusters depends on the layout of the multiprocessors, which only the driver knows.
    driver::Handle const function = function_of(probe, "prnn_probe", index);
    for (int size = 0; size < 4; ++size) {
      driver::LaunchAttribute attribute{};
      Plan plan{};
      plan.regime = Regime::cluster, plan.blocks = 2 << size, plan.teams = 1;
      const driver::LaunchConfig config = config_of(plan, 1, device.shared_memory, attribute);
      if (api().cuOccupancyMaxActiveClusters(&device.clusters[size], function, &config)) device.clusters[size] = 0;
    }
  }
  return known.emplace(index, device).first->second;
}

}  // namespace prnn::cuda
