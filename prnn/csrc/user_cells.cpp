#include "user_cells.h"

#include <dlfcn.h>

#include <cstring>
#include <deque>
#include <mutex>
#include <stdexcept>

#include "cpu/kernels.h"

#ifndef PRNN_HEADERS
#define PRNN_HEADERS ""
#endif

namespace prnn {

namespace {

std::mutex mutex;
std::deque<const UserCell*> loaded;  // never unloaded: a graph may still hold a number

[[noreturn]] void refuse(const std::string& path, const std::string& why) {
  throw std::runtime_error("prnn: " + path + " " + why);
}

}  // namespace

const char* headers() { return PRNN_HEADERS; }

int64_t load_user_cell(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) refuse(path, std::string("does not load: ") + dlerror());
  const auto* cell = static_cast<const UserCell*>(dlsym(library, "prnn_user_cell"));
  if (!cell) refuse(path, "is not the kernel of a cell");
  // The first member has stood where it is in every version.
  if (std::strcmp(cell->headers, headers())) refuse(path, "was compiled for another version of prnn");
  const char* isa = cpu::best_kernels(cell->bfloat16 ? Dtype::bfloat16 : Dtype::float32).isa;
  if (std::strcmp(cell->isa, isa)) refuse(path, std::string("is for ") + cell->isa + ", this process runs " + isa);
  const std::lock_guard<std::mutex> lock(mutex);
  loaded.push_back(cell);
  return kCellCount + static_cast<int64_t>(loaded.size()) - 1;
}

const UserCell* user_cell(int64_t number) {
  if (is_cell(number)) return nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  const int64_t index = number - kCellCount;
  if (index < 0 || index >= static_cast<int64_t>(loaded.size()))
    throw std::runtime_error("prnn_native: there is no such cell");
  return loaded[static_cast<std::size_t>(index)];
}

const CellRow& cell_row(int64_t number) {
  const UserCell* user = user_cell(number);
  return user ? user->row : kCells[number];
}

}  // namespace prnn
