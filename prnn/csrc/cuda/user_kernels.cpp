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
  int registers;
};

std::mutex mutex;                      // of the two below
std::deque<UserCellOnGpu> cells;       // never removed: a graph may still hold a number
std::map<KernelName, Kernel> kernels;  // never unloaded

std::string name_of(const KernelName& name) {
  return std::to_string(static_cast<int>(name.scheme)) + " " + std::to_string(name.backward) + " " +
         std::to_string(name.shape);
}

std::optional<Kernel> find(const KernelName& name) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = kernels.find(name);
  return found == kernels.end() ? std::nullopt : std::optional(found->second);
}

// The calls of the driver need a context, which a new thread does not have yet.
void make_current(int device) {
  driver::Handle context = nullptr;
  check(api().cuInit(0), "prnn: the CUDA driver");
  check(api().cuCtxGetCurrent(&context), "prnn: the CUDA driver");
  if (context) return;
  int handle = 0;
  check(api().cuDeviceGet(&handle, device), "prnn: device " + std::to_string(device));
  check(api().cuDevicePrimaryCtxRetain(&context, handle), "prnn: device " + std::to_string(device));
  check(api().cuCtxSetCurrent(context), "prnn: device " + std::to_string(device));
}

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
  const std::string what = "prnn: memory for what a kernel records";
  int mode = driver::kRelaxed;  // forbidden otherwise while a stream captures a graph
  check(api().cuThreadExchangeStreamCaptureMode(&mode), what);
  void* memory = nullptr;
  const driver::Result result = api().cuMemHostAlloc(&memory, bytes, driver::kPortable | driver::kDeviceMap);
  api().cuThreadExchangeStreamCaptureMode(&mode);
  check(result, what);
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
  const UserCellOnGpu& cell = user_cell_on_gpu(number);
  const KernelName name{number, device, plan.scheme, backward, plan.shape};
  const std::optional<Kernel> kernel = find(name);
  if (!kernel) throw Wanted("prnn wants kernel " + name_of(name));
  make_current(device);
  const Recurrence of{cell.model, layer.dtype, layer.B, layer.H, backward, plan.tf32, layer.K};
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
      check(api().cuLaunchKernelEx(&config, kernel->function, arguments, nullptr), what);
    }
}

}  // namespace

bool operator<(const KernelName& a, const KernelName& b) {
  const auto key = [](const KernelName& n) { return std::make_tuple(n.cell, n.device, n.scheme, n.backward, n.shape); };
  return key(a) < key(b);
}

int64_t define_user_cell(const std::string& name, const CellRow& row, const std::vector<int64_t>& resident) {
  const std::lock_guard<std::mutex> lock(mutex);
  UserCellOnGpu& cell = cells.emplace_back();
  cell.name = name, cell.row = row;
  cell.row.name = cell.name.c_str();
  cell.model = model_of_user_cell(cell.row, resident);
  return kCellCount + static_cast<int64_t>(cells.size()) - 1;
}

void set_resident(int64_t number, Scheme scheme, bool backward, int shape, int resident) {
  const UserCellOnGpu& cell = user_cell_on_gpu(number);
  const std::lock_guard<std::mutex> lock(mutex);
  for (auto& of_element : const_cast<CellModel&>(cell.model).resident[static_cast<int>(scheme)])
    of_element[backward][shape] = resident;
}

bool is_user_cell(int64_t number) { return !is_cell(number); }

const UserCellOnGpu& user_cell_on_gpu(int64_t number) {
  const std::lock_guard<std::mutex> lock(mutex);
  const int64_t index = number - kCellCount;
  if (index < 0 || index >= static_cast<int64_t>(cells.size()))
    throw std::runtime_error("prnn_native: there is no such cell");
  return cells[static_cast<size_t>(index)];
}

void load_kernel(const KernelName& name, const void* image) {
  if (find(name)) return;
  Kernel kernel{function_of(image, "prnn_user_kernel", name.device), 0};
  check(api().cuFuncGetAttribute(&kernel.registers, driver::kRegisters, kernel.function), "prnn");
  const std::lock_guard<std::mutex> lock(mutex);
  kernels.emplace(name, kernel);
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
  const std::optional<Kernel> kernel = find({cell, device, plan.scheme, of.backward, plan.shape});
  return describe(plan, shared_memory_of(plan, of), kernel ? kernel->registers : 0);
}

int architecture(int device) {
  return attribute_of(device, driver::kCapabilityMajor) * 10 + attribute_of(device, driver::kCapabilityMinor);
}

const Device& device_limits_of_driver(int index, const void* probe) {
  static std::mutex of_limits;
  static std::map<int, Device> known;
  const std::lock_guard<std::mutex> lock(of_limits);
  if (const auto entry = known.find(index); entry != known.end()) return entry->second;
  if (!probe) throw Wanted("prnn wants probe");
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
