// Q2QuantizedMoE: its call, and the kernels by tensor cores, compiled once per element type.
#pragma once

#include "common/gpu.h"
#include "moe/arguments.h"
#include "moe/quantized_heuristics.h"

namespace q2export
{

// A call of q2export_quantized_moe, checked.
struct QuantizedMoeCall : RouterCall
{
    int32_t bits;
    int32_t block_size;
    void const* hidden;
    unsigned char const* gate_up;
    void const* gate_up_scale;
    unsigned char const* down;
    void const* down_scale;
    void* output;
};

// Queues a layer: by the fast kernels with this plan if they take the call, by the reference kernels if not.
q2export_status run_quantized_moe(
    QuantizedMoeCall const& call, MoeWorkspace const& parts, Gpu const& gpu, MoePlan const& plan);

// Queues both products and the weighted sum. Element: __half or __nv_bfloat16.
template <typename Element>
q2export_status multiply_quantized_experts(
    QuantizedMoeCall const& call, MoeWorkspace const& parts, Gpu const& gpu, MoePlan const& plan);

} // namespace q2export
