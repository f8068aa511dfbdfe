#include "plan_text.h"

#include <algorithm>
#include <sstream>
#include <stdexcept>
#include <utility>

namespace prnn::cuda {

namespace {

Regime regime_of(const std::string& name) {
  for (const Regime regime : {Regime::block, Regime::cluster, Regime::grid})
    if (name == name_of(regime)) return regime;
  throw std::runtime_error("PRNN_CUDA_REGIME=" + name + ": expected block, cluster or grid");
}

// Sets the field that `setting`, such as "blocks=16", names; false if it names none, or gives it no number.
bool set(PlanFilter& filter, const std::string& setting) {
  const std::pair<const char*, std::optional<int>*> fields[] = {
      {"shape", &filter.shape}, {"row_warps", &filter.row_warps},   {"blocks", &filter.blocks},
      {"tiles", &filter.tiles}, {"directions", &filter.directions}, {"tf32", &filter.tf32},
  };
  const size_t equals = setting.find('=');
  if (equals == std::string::npos) return false;
  const std::string name = setting.substr(0, equals), number = setting.substr(equals + 1);
  const auto digit = [](char c) { return c >= '0' && c <= '9'; };
  if (number.empty() || number.size() > 6 || !std::all_of(number.begin(), number.end(), digit)) return false;
  for (const auto& [field, value] : fields)
    if (name == field) return *value = std::stoi(number), true;
  return false;
}

}  // namespace

PlanFilter plan_filter(const char* regime, const char* plan) {
  PlanFilter filter;
  if (regime && *regime) filter.regime = regime_of(regime);
  if (!plan || !*plan) return filter;
  std::istringstream settings(plan);
  for (std::string setting; std::getline(settings, setting, ',');)
    if (!set(filter, setting))
      throw std::runtime_error("PRNN_CUDA_PLAN=" + std::string(plan) +
                               ": expected numbers of shape, row_warps, blocks, tiles, directions or tf32, such as "
                               "shape=2,row_warps=1,blocks=16");
  return filter;
}

std::string json_of(const Device& device) {
  std::ostringstream text;
  text.precision(9);
  text << "{\"multiprocessors\": " << device.multiprocessors << ", \"shared_memory\": " << device.shared_memory
       << ", \"clusters\": [";
  for (int i = 0; i < 4; ++i) text << (i ? ", " : "") << device.clusters[i];
  text << "], \"clock_ghz\": " << device.clock_ghz << "}";
  return text.str();
}

std::string json_of(const std::optional<Plan>& plan) {
  if (!plan) return "null";
  std::ostringstream text;
  text.precision(9);
  text << "{\"regime\": \"" << name_of(plan->regime) << "\"";
  const std::pair<const char*, int> fields[] = {
      {"shape", plan->shape},           {"row_warps", plan->row_warps}, {"blocks", plan->blocks},
      {"directions", plan->directions}, {"teams", plan->teams},         {"tiles", plan->tiles},
      {"columns", plan->columns},       {"groups", plan->groups},       {"k_groups", plan->k_groups},
  };
  for (const auto& [name, value] : fields) text << ", \"" << name << "\": " << value;
  text << ", \"tf32\": " << (plan->tf32 ? "true" : "false") << ", \"microseconds\": " << plan->microseconds << "}";
  return text.str();
}

}  // namespace prnn::cuda
