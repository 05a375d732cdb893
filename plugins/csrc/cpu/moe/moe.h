// Mixture of experts: lists of linear layers run as one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/parallel.h"

namespace q2export::cpu
{

// Runs the tasks of several layers as one list, so that no thread waits where one layer ends: tasks(layer) is how many
// there are, run(layer, index) does one.
template <typename Layer, typename Tasks, typename Run>
void run_layers(
    std::vector<Layer> const& layers, q2export_cpu_parallel_for const* pool, Tasks const& tasks, Run const& run)
{
    std::vector<int64_t> ends;
    ends.reserve(layers.size());
    int64_t count = 0;
    for (Layer const& layer : layers)
    {
        count += tasks(layer);
        ends.push_back(count);
    }
    parallel_for(pool, count, [&](int64_t index) {
        auto const layer = static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), index) - ends.begin());
        run(layers[layer], index - (layer == 0 ? 0 : ends[layer - 1]));
    });
}

} // namespace q2export::cpu
