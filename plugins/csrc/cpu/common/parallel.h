// Tasks, on the caller's threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "q2export/cpu.h"

namespace q2export::cpu
{

// Bytes of weights that a task reads where few rows stream them, `total` in all: long runs, which memory likes, but tasks
// enough that no thread waits for another in the end.
inline int64_t streamed_bytes(int64_t total)
{
    constexpr int64_t kTasks = 16;
    constexpr int64_t kLeast = 64 * 1024;
    constexpr int64_t kMost = 1024 * 1024;
    return std::clamp(total / kTasks, kLeast, kMost);
}

// Calls body(i) once for each i < count. `body` must not throw.
template <typename Body>
void parallel_for(q2export_cpu_parallel_for const* pool, int64_t count, Body const& body)
{
    auto const task = [](void* data, size_t index) { (*static_cast<Body const*>(data))(static_cast<int64_t>(index)); };
    if (pool == nullptr || pool->run == nullptr || count <= 1)
    {
        for (int64_t index = 0; index < count; ++index)
        {
            body(index);
        }
        return;
    }
    pool->run(pool->context, task, const_cast<Body*>(&body), static_cast<size_t>(count));
}

} // namespace q2export::cpu
