// Prints the arguments of one launch of a recurrence kernel, as the bytes that a kernel finds in its constant bank, and
// what the simulation needs to know of it:
//
//   launches CELL DTYPE B H DIRECTIONS T backward|forward [KEY=VALUE ...]   keys: fields of PlanFilter, and
//                                                                           those of Recurrence: K, tf32
//
// CELL is the name of a built-in cell, or of one written in Python, followed by numbers: gates, saved, states, params,
// inputs, output, whether it splits gates, and resident fragments, by scheme, pass and shape.
//
// Arrays have addresses in ranges of their own, which stand for nothing. Compiled against the headers of the kernels.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <sstream>
#include <string>
#include <vector>

#include "kernels.h"
#include "timeouts.h"

namespace {

using namespace prnn;
using namespace prnn::cuda;

template <class X>
void print_bytes(const X& x) {
  std::printf("parameter ");
  const auto* const bytes = reinterpret_cast<const unsigned char*>(&x);
  for (size_t i = 0; i < sizeof(X); ++i) std::printf("%02x", bytes[i]);
  std::printf("\n");
}

char* array(const char* name, int64_t bytes) {
  static int64_t next = 0x7f0000000000;
  char* const base = reinterpret_cast<char*>(next);
  next += int64_t(1) << 32;
  std::printf("array %s %lld %lld\n", name, static_cast<long long>(next - (int64_t(1) << 32)),
              static_cast<long long>(bytes));
  return base;
}

struct SimulatedCell {
  std::string name;
  CellRow row;
  CellModel model;
};

SimulatedCell cell_of(const std::string& text) {
  std::istringstream words(text);
  SimulatedCell cell{};
  words >> cell.name;
  std::vector<int64_t> numbers;
  for (int64_t number = 0; words >> number;) numbers.push_back(number);
  if (numbers.empty()) {
    int number = 0;
    while (number < kCellCount && cell.name != kCells[number].name) ++number;
    cell.row = kCells[number], cell.model = model_of(static_cast<Cell>(number));
    return cell;
  }
  cell.row = {"",
              numbers.at(0),
              numbers.at(1),
              numbers.at(2),
              numbers.at(3),
              numbers.at(4),
              numbers.at(5),
              numbers.at(6) != 0,
              false};
  cell.model = model_of_user_cell(cell.row);
  size_t i = 7;
  for (auto& of_scheme : cell.model.resident)
    for (const bool backward : {false, true})
      for (int shape = 0; shape < kShapes; ++shape, ++i)
        of_scheme[0][backward][shape] = of_scheme[1][backward][shape] = static_cast<int>(numbers.at(i));
  return cell;
}

int run(int count, char** text) {
  // 132 multiprocessors; 7 clusters of 16 is what to count on, since some GPCs have no 16 left.
  const Device h200{132, 227 << 10, {66, 30, 15, 7}, 1.98};
  const SimulatedCell cell = cell_of(text[1]);
  const CellRow& row = cell.row;
  const std::string type = text[2];
  const Dtype dtype = type == "float32" ? Dtype::float32 : type == "bfloat16" ? Dtype::bfloat16 : Dtype::float16;
  const int64_t B = std::atoll(text[3]), H = std::atoll(text[4]), T = std::atoll(text[6]);
  const int directions = std::atoi(text[5]);
  const bool backward = !std::strcmp(text[7], "backward"), float32 = dtype == Dtype::float32;
  PlanFilter filter;
  int64_t K = -1;
  bool tf32 = false;
  for (int i = 8; i < count; ++i) {
    const std::string pair = text[i], key = pair.substr(0, pair.find('=')), value = pair.substr(key.size() + 1);
    const int as_int = std::atoi(value.c_str());
    if (key == "regime")
      filter.regime = value == "block" ? Regime::block : value == "cluster" ? Regime::cluster : Regime::grid;
    else if (key == "shape")
      filter.shape = as_int;
    else if (key == "row_warps")
      filter.row_warps = as_int;
    else if (key == "blocks")
      filter.blocks = as_int;
    else if (key == "tiles")
      filter.tiles = as_int;
    else if (key == "K")
      K = as_int;
    else if (key == "tf32")
      tf32 = as_int != 0;
    else
      return std::fprintf(stderr, "unknown key: %s\n", pair.c_str()), 2;
  }
  const Recurrence of{cell.model, dtype, B, H, backward, tf32, K};
  const auto plan = make_plan(of, directions, h200, filter);
  if (!plan) return std::fprintf(stderr, "no plan\n"), 1;
  const SharedMemory shared = shared_memory_of(*plan, of);

  const int64_t size = float32 ? 4 : 2, of_saved = row.rounds_saved ? size : 4, G = row.gates, S = row.saved;
  Layer layer{};
  layer.dtype = dtype, layer.T = T, layer.B = B, layer.H = H, layer.K = K < 0 ? H : K;
  layer.x = {array("x", T * B * directions * G * H * size), B * directions * G * H, directions * G * H};
  layer.weight_hh = array("weight_hh", directions * G * H * H * size);
  layer.h0 = array("h0", B * H * size);
  const auto states = [&](const char* name) {
    return row.states ? reinterpret_cast<float*>(array(name, row.states * B * H * 4)) : nullptr;
  };
  const auto at_step = [&](const char* name) {
    if (row.inputs == 0) return Sequence<void>{};
    return Sequence<void>{array(name, T * B * row.inputs * H * 4), B * row.inputs * H, row.inputs * H};
  };
  layer.c0 = states("c0"), layer.state_step = B * H;
  if (row.params) layer.params = reinterpret_cast<const float*>(array("params", row.params * H * 4));
  const Sequence<void> inputs = at_step("inputs");
  layer.inputs = {inputs.data, inputs.step, inputs.row};
  WaitLimit limit = wait_limit("", layer, *plan, backward);
  limit.fault = reinterpret_cast<Fault*>(array("fault", sizeof(Fault)));
  const auto rows = [&](const char* name, int64_t width) {
    return Sequence<void>{array(name, T * B * directions * width * size), B * directions * width, directions * width};
  };
  char* const workspace = array("workspace", workspace_bytes(*plan, shared));
  print_bytes(*plan);
  print_bytes(limit);
  if (!backward) {
    Forward pass{};
    static_cast<Layer&>(pass) = layer;
    pass.bias_hh = array("bias_hh", G * H * size);
    pass.output = rows("output", H);
    pass.h_n = array("h_n", B * H * size);
    pass.c_n = states("c_n");
    pass.saved = S ? array("saved", T * B * S * H * of_saved) : nullptr;
    if (row.output >= 0) pass.hidden = rows("hidden", H);
    print_bytes(Directions<Forward>{{pass, pass}, 0});
  } else {
    SerialBackward pass{};
    static_cast<Layer&>(pass) = layer;
    const Sequence<void> output = rows("output", H), grad_output = rows("grad_output", H);
    pass.output = {output.data, output.step, output.row};
    pass.saved = S ? array("saved", T * B * S * H * of_saved) : nullptr;
    const Sequence<void> hidden = row.output >= 0 ? rows("hidden", H) : Sequence<void>{};
    pass.hidden = {hidden.data, hidden.step, hidden.row};
    if (row.params) pass.grad_params_of_samples = reinterpret_cast<float*>(array("of_params", B * row.params * H * 4));
    pass.grad_inputs = at_step("grad_inputs");
    pass.grad_output = {grad_output.data, grad_output.step, grad_output.row};
    pass.grad_x = rows("grad_x", G * H);
    if (row.splits_gates) pass.grad_gates_h = array("grad_gates_h", T * B * directions * G * H * size);
    pass.grad_h0 = array("grad_h0", B * H * size);
    pass.grad_c0 = states("grad_c0");
    print_bytes(Directions<SerialBackward>{{pass, pass}, 0});
  }
  print_bytes(workspace);

  // The simulated block: one with most units, but not the last, whose units may be fewer than 16 a group.
  int rank = 0;
  for (int other = 0; other < plan->blocks; ++other)
    if (plan->first_group(other + 1) - plan->first_group(other) > plan->first_group(rank + 1) - plan->first_group(rank))
      rank = other;
  const double published = received_bytes(*plan, float32);
  std::printf("value rank %d\nvalue blocks %d\nvalue teams %d\nvalue shape %d\nvalue row_warps %d\nvalue k_warps %d\n",
              rank, plan->blocks, plan->teams, plan->shape, plan->row_warps, plan->k_warps());
  std::printf("value columns %d\nvalue tiles %d\nvalue shared_bytes %d\nvalue step_bytes %lld\n", plan->columns,
              plan->tiles, shared.total,
              static_cast<long long>(backward ? B * directions * G * H * size : B * directions * H * size));
  std::printf("value directions %d\nvalue groups %d\nvalue k_groups %d\n", plan->directions, plan->groups,
              plan->k_groups);
  std::printf("value slot_bytes %lld\nvalue received_bytes %lld\n",
              static_cast<long long>(workspace_bytes(*plan, shared) / plan->teams / kSlots),
              static_cast<long long>(published * (plan->blocks - 1) / plan->blocks));
  std::printf("value scheme %d\nvalue product %d\n", static_cast<int>(plan->scheme), of.product());
  std::printf("text regime %s\n", name_of(plan->regime));
  return 0;
}

}  // namespace

int main(int count, char** text) {
  if (count < 8) return 2;
  try {
    return run(count, text);
  } catch (const std::exception& error) {
    return std::fprintf(stderr, "%s\n", error.what()), 1;
  }
}
