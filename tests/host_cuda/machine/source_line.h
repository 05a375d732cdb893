// Where an instruction is in the sources.
#pragma once

#include <string>

namespace host_cuda
{

// The line that a call returns to, and those it is inlined into, as addr2line tells them.
std::string source_line(void const* return_address);

} // namespace host_cuda
