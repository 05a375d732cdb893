// Tasks, on the caller's threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "q2export/cpu.h"

namespace q2export::cpu
{

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
