// The cells that were loaded into this process, by their numbers.
#pragma once

#include <cstdint>
#include <string>

#include "layer_args.h"

namespace prnn {

// Loads the shared object of a cell; throws std::runtime_error where it does not fit this library or this processor.
// Its number is beyond those of the table's cells.
int64_t load_user_cell(const std::string& path);

// The row of any cell by its number, and the cell if it is a user's; throws for a number that is none.
const CellRow& cell_row(int64_t number);
const UserCell* user_cell(int64_t number);

// The hash of the headers this library was compiled with.
const char* headers();

}  // namespace prnn
