// Mixture of experts over weights of 16 and 32 bits: each chosen expert multiplies its tokens as linear layers do.
#include "moe/moe.h"

#include <iterator>

#include "common/element.h"
#include "common/error.h"
#include "common/scratch.h"
#include "linear/input_rows.h"
#include "moe/dispatch.h"
#include "swiglu/swiglu.h"

namespace q2export::cpu
{
namespace
{

constexpr char kOp[] = "moe";

struct Experts
{
    Bytes const* gate;
    Bytes const* up;
    Bytes const* down;
    q2export_dtype dtype;
    q2export_cpu_activations activations;
};

// What a call keeps of every row, as Dispatch sorts them.
struct Buffers
{
    Buffers(MoeShape const& shape, q2export_cpu_activations activations)
    {
        constexpr size_t kCacheLine = 64;
        bool const is_rounded = activations != Q2EXPORT_CPU_ACTIVATIONS_FLOAT32;
        int64_t const slots = shape.slots();
        size_t const inner = static_cast<size_t>(slots * shape.intermediate_size);
        size_t const wide = static_cast<size_t>(slots * shape.hidden_size);
        size_t const bytes[] = {InputRows::bytes(activations, slots, shape.hidden_size),
            is_rounded ? InputRows::bytes(activations, slots, shape.intermediate_size) : 0, inner * sizeof(float),
            inner * sizeof(float), wide * sizeof(float)};
        size_t ends[std::size(bytes)];
        size_t end = 0;
        for (size_t i = 0; i < std::size(bytes); ++i)
        {
            end += (bytes[i] + kCacheLine - 1) / kCacheLine * kCacheLine;
            ends[i] = end;
        }
        auto* const memory = static_cast<char*>(thread_scratch(Scratch::kExpertRows, end));
        input = memory;
        gate = reinterpret_cast<float*>(memory + ends[1]);
        activated = is_rounded ? memory + ends[0] : memory + ends[1];
        up = reinterpret_cast<float*>(memory + ends[2]);
        results = reinterpret_cast<float*>(memory + ends[3]);
    }

    void* input;     // [slots, hidden_size], what gate and up multiply
    void* activated; // [slots, intermediate_size], what down multiplies; gate's where it is not rounded
    float* gate;     // [slots, intermediate_size]
    float* up;       // [slots, intermediate_size]
    float* results;  // [slots, hidden_size]
};

void run(MoeShape const& shape, float const* hidden, float const* router_logits, Experts const& experts, float* output,
    q2export_cpu_parallel_for const* pool)
{
    Dispatch const dispatch(shape, router_logits, pool);
    Buffers const buffers(shape, experts.activations);
    int64_t const width = shape.hidden_size;
    int64_t const inner = shape.intermediate_size;
    InputRows const input(experts.activations, buffers.input, width);
    InputRows const activated(experts.activations, buffers.activated, inner);
    q2export_cpu_parallel_for const* const threads = threads_for(shape.num_tokens, pool);
    parallel_for(
        threads, shape.slots(), [&](int64_t row) { input.put(row, hidden + dispatch.token(row) * width); });
    std::vector<Linear> up;
    std::vector<Linear> down;
    for (int32_t expert = 0; expert < shape.num_experts; ++expert)
    {
        int64_t const rows = dispatch.rows(expert);
        if (rows == 0)
        {
            continue;
        }
        int64_t const first = dispatch.first_row(expert);
        Linear layer{rows, width, inner, nullptr, experts.gate[expert], nullptr, buffers.gate + first * inner,
            experts.dtype, Q2EXPORT_FLOAT32};
        input.feed(first, layer);
        up.push_back(layer);
        layer.weight = experts.up[expert];
        layer.output = buffers.up + first * inner;
        up.push_back(layer);
        down.push_back({rows, inner, width, nullptr, experts.down[expert], nullptr, buffers.results + first * width,
            experts.dtype, Q2EXPORT_FLOAT32});
        activated.feed(first, down.back());
    }
    run_layers(up, pool, linear_tasks, run_linear_task);
    SwigluKernels const& kernels = swiglu_kernels();
    parallel_for(threads, shape.slots(), [&](int64_t row) {
        float* const gate = buffers.gate + row * inner;
        kernels.swiglu(gate, buffers.up + row * inner, gate, inner);
        activated.put(row, gate);
    });
    run_layers(down, pool, linear_tasks, run_linear_task);
    dispatch.combine(buffers.results, output, pool);
}

} // namespace
} // namespace q2export::cpu

extern "C" q2export_status q2export_cpu_moe(q2export_cpu_moe_desc const* desc, float const* hidden,
    float const* router_logits, void const* const* gate, void const* const* up, void const* const* down, float* output,
    q2export_cpu_parallel_for const* parallel_for)
{
    using namespace q2export::cpu;
    Q2EXPORT_TRY(check_pointer(kOp, "desc", desc));
    MoeShape const shape{desc->num_tokens, desc->hidden_size, desc->intermediate_size, desc->num_experts, desc->top_k,
        desc->norm_topk_prob != 0};
    Q2EXPORT_TRY(check_moe(kOp, shape, desc->norm_topk_prob));
    Q2EXPORT_TRY(check_range(kOp, "weight_dtype", desc->weight_dtype, Q2EXPORT_FLOAT32, Q2EXPORT_BFLOAT16));
    Q2EXPORT_TRY(check_activations(kOp, desc->activations, desc->weight_dtype));
    if (desc->num_tokens == 0)
    {
        return Q2EXPORT_SUCCESS;
    }
    Q2EXPORT_TRY(check_moe_pointers(kOp, hidden, router_logits, output));
    for (void const* const* table : {gate, up, down})
    {
        Q2EXPORT_TRY(check_pointer(kOp, "experts", table));
        for (int32_t expert = 0; expert < desc->num_experts; ++expert)
        {
            Q2EXPORT_TRY(check_pointer(kOp, "an expert's weight", table[expert]));
        }
    }
    run(shape, hidden, router_logits,
        {reinterpret_cast<Bytes const*>(gate), reinterpret_cast<Bytes const*>(up), reinterpret_cast<Bytes const*>(down),
            desc->weight_dtype, desc->activations},
        output, parallel_for);
    return Q2EXPORT_SUCCESS;
}
