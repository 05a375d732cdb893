// Memory that a thread keeps for its tasks, so that none is allocated per call.
#pragma once

#include <cstddef>

namespace q2export::cpu
{

// At least `count` floats at a cache line, the same for all tasks of a thread; contents are undefined.
// Ends the process where there is no memory.
float* thread_scratch(size_t count);

} // namespace q2export::cpu
