// Mixture of experts over weights of 16 and 32 bits: each chosen expert multiplies its tokens as linear layers do.
#include "moe/moe.h"

#include "common/element.h"
#include "common/error.h"
#include "common/scratch.h"
#include "linear/linear.h"
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
};

// A call's floats, row by row as Dispatch sorts them.
struct Buffers
{
    explicit Buffers(MoeShape const& shape)
    {
        int64_t const floats = shape.slots() * 2 * (shape.hidden_size + shape.intermediate_size);
        rows = static_cast<float*>(thread_scratch(Scratch::kExpertRows, static_cast<size_t>(floats) * sizeof(float)));
        gate = rows + shape.slots() * shape.hidden_size;
        up = gate + shape.slots() * shape.intermediate_size;
        results = up + shape.slots() * shape.intermediate_size;
    }

    float* rows;    // [slots, hidden_size]
    float* gate;    // [slots, intermediate_size]
    float* up;      // [slots, intermediate_size]
    float* results; // [slots, hidden_size]
};

void run(MoeShape const& shape, float const* hidden, float const* router_logits, Experts const& experts, float* output,
    q2export_cpu_parallel_for const* pool)
{
    Dispatch const dispatch(shape, router_logits, pool);
    Buffers const buffers(shape);
    int64_t const width = shape.hidden_size;
    int64_t const inner = shape.intermediate_size;
    q2export_cpu_parallel_for const* const threads = threads_for(shape.num_tokens, pool);
    parallel_for(threads, shape.slots(), [&](int64_t row) {
        std::copy_n(hidden + dispatch.token(row) * width, width, buffers.rows + row * width);
    });
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
        float const* const input = buffers.rows + first * width;
        float* const gates = buffers.gate + first * inner;
        up.push_back({rows, width, inner, input, experts.gate[expert], nullptr, gates, experts.dtype, 0});
        up.push_back(
            {rows, width, inner, input, experts.up[expert], nullptr, buffers.up + first * inner, experts.dtype, 0});
        down.push_back({rows, inner, width, gates, experts.down[expert], nullptr, buffers.results + first * width,
            experts.dtype, 0});
    }
    run_layers(up, pool, linear_tasks, run_linear_task);
    SwigluKernels const& kernels = swiglu_kernels();
    parallel_for(threads, shape.slots(), [&](int64_t row) {
        float* const gate = buffers.gate + row * inner;
        kernels.swiglu(gate, buffers.up + row * inner, gate, inner);
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
            desc->weight_dtype},
        output, parallel_for);
    return Q2EXPORT_SUCCESS;
}
