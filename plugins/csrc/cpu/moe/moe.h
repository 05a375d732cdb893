// Mixture of experts: what the instruction sets implement, and lists of linear layers run as one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/parallel.h"

namespace q2export::cpu
{

struct MoeKernels
{
    // gate = silu(gate) * up, element by element.
    void (*swiglu)(float* gate, float const* up, int64_t count);
    // The same of `count` pairs of a gate and an up.
    void (*swiglu_pairs)(float const* pairs, float* output, int64_t count);
};

extern MoeKernels const kMoePortable;
extern MoeKernels const kMoeAvx2;
extern MoeKernels const kMoeAvx512;

// Those of the selected instruction set.
MoeKernels const& moe_kernels();

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
