// The TensorRT libraries of this process.
#pragma once

#include <vector>

namespace q2export
{

// Addresses of the function `name` in every TensorRT or TensorRT-RTX library that is loaded.
//
// The plugin library is not linked against either, so that one file serves both; and Python loads them in a scope
// in which the dynamic linker would not look for the function.
std::vector<void*> loaded_functions(char const* name);

} // namespace q2export
