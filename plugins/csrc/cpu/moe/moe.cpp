// Mixture of experts: tokens are routed and sorted by expert, each chosen expert multiplies its own as linear layers do,
// and every token adds up what its experts return, in the order in which it chose them.
#include "moe/moe.h"

#include <algorithm>
#include <vector>

#include "common/error.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "linear/linear.h"
#include "moe/routing.h"

namespace q2export::cpu
{
namespace
{

constexpr char kOp[] = "moe";
constexpr int32_t kMaxExperts = 4096;

#if Q2EXPORT_CPU_X86
constexpr MoeKernels const* kTables[3] = {&kMoePortable, &kMoeAvx2, &kMoeAvx512};
#else
constexpr MoeKernels const* kTables[3] = {&kMoePortable, &kMoePortable, &kMoePortable};
#endif

q2export_status check(q2export_cpu_moe_desc const* desc)
{
    Q2EXPORT_TRY(check_pointer(kOp, "desc", desc));
    Q2EXPORT_TRY(check_range(kOp, "num_tokens", desc->num_tokens, 0, INT32_MAX));
    Q2EXPORT_TRY(check_range(kOp, "hidden_size", desc->hidden_size, 1, INT32_MAX));
    Q2EXPORT_TRY(check_range(kOp, "intermediate_size", desc->intermediate_size, 1, INT32_MAX));
    Q2EXPORT_TRY(check_range(kOp, "num_experts", desc->num_experts, 1, kMaxExperts));
    Q2EXPORT_TRY(check_range(kOp, "top_k", desc->top_k, 1, desc->num_experts));
    Q2EXPORT_TRY(check_range(kOp, "norm_topk_prob", desc->norm_topk_prob, 0, 1));
    Q2EXPORT_TRY(check_range(kOp, "weight_dtype", desc->weight_dtype, Q2EXPORT_FLOAT32, Q2EXPORT_BFLOAT16));
    Q2EXPORT_TRY(check_elements(kOp, "gate", desc->intermediate_size, desc->hidden_size));
    int64_t const widest = std::max(desc->hidden_size, desc->intermediate_size);
    return check_elements(kOp, "hidden", desc->num_tokens, widest, desc->top_k);
}

struct Experts
{
    Bytes const* gate;
    Bytes const* up;
    Bytes const* down;
};

// A call's memory. Slots are pairs of a token and one of its experts, [num_tokens, top_k]; rows are slots by expert.
struct Buffers
{
    explicit Buffers(q2export_cpu_moe_desc const& desc)
        : slots(desc.num_tokens * desc.top_k)
    {
        int64_t const floats = slots * (2 * desc.hidden_size + 2 * desc.intermediate_size + 1)
            + desc.num_tokens * desc.num_experts;
        int64_t const ints = 2 * slots + desc.num_experts + 1;
        auto* const memory = static_cast<float*>(
            thread_scratch(Scratch::kExperts, static_cast<size_t>(floats + ints) * sizeof(float)));
        rows = memory;
        gate = rows + slots * desc.hidden_size;
        up = gate + slots * desc.intermediate_size;
        results = up + slots * desc.intermediate_size;
        weights = results + slots * desc.hidden_size;
        probabilities = weights + slots;
        experts = reinterpret_cast<int32_t*>(probabilities + desc.num_tokens * desc.num_experts);
        row_of_slot = experts + slots;
        first_row = row_of_slot + slots;
    }

    int64_t slots;
    float* rows;          // [slots, hidden_size]
    float* gate;          // [slots, intermediate_size]
    float* up;            // [slots, intermediate_size]
    float* results;       // [slots, hidden_size]
    float* weights;       // [num_tokens, top_k]
    float* probabilities; // [num_tokens, num_experts]
    int32_t* experts;     // [num_tokens, top_k]
    int32_t* row_of_slot; // [num_tokens, top_k]
    int32_t* first_row;   // [num_experts + 1]
};

// Sorts slots by expert, those of one expert by token.
void sort_slots(q2export_cpu_moe_desc const& desc, Buffers const& buffers)
{
    std::fill(buffers.first_row, buffers.first_row + desc.num_experts + 1, 0);
    for (int64_t slot = 0; slot < buffers.slots; ++slot)
    {
        ++buffers.first_row[buffers.experts[slot] + 1];
    }
    for (int32_t expert = 0; expert < desc.num_experts; ++expert)
    {
        buffers.first_row[expert + 1] += buffers.first_row[expert];
    }
    for (int64_t slot = 0; slot < buffers.slots; ++slot)
    {
        buffers.row_of_slot[slot] = buffers.first_row[buffers.experts[slot]]++;
    }
    for (int32_t expert = desc.num_experts; expert > 0; --expert)
    {
        buffers.first_row[expert] = buffers.first_row[expert - 1];
    }
    buffers.first_row[0] = 0;
}

// Runs the tasks of several linear layers as one list.
void run_layers(std::vector<Linear> const& layers, q2export_cpu_parallel_for const* pool)
{
    std::vector<int64_t> ends;
    int64_t count = 0;
    for (Linear const& layer : layers)
    {
        count += linear_tasks(layer);
        ends.push_back(count);
    }
    parallel_for(pool, count, [&](int64_t index) {
        size_t const layer = static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), index) - ends.begin());
        run_linear_task(layers[layer], index - (layer == 0 ? 0 : ends[layer - 1]));
    });
}

void run(q2export_cpu_moe_desc const& desc, float const* hidden, float const* router_logits, Experts const& experts,
    float* output, q2export_cpu_parallel_for const* pool)
{
    Buffers const buffers(desc);
    int64_t const width = desc.hidden_size;
    int64_t const inner = desc.intermediate_size;
    parallel_for(pool, desc.num_tokens, [&](int64_t token) {
        int64_t const slot = token * desc.top_k;
        route_token(router_logits + token * desc.num_experts, desc.num_experts, desc.top_k, desc.norm_topk_prob != 0,
            buffers.probabilities + token * desc.num_experts, buffers.experts + slot, buffers.weights + slot);
    });
    sort_slots(desc, buffers);
    for (int64_t slot = 0; slot < buffers.slots; ++slot)
    {
        float const* const source = hidden + slot / desc.top_k * width;
        std::copy(source, source + width, buffers.rows + buffers.row_of_slot[slot] * width);
    }
    std::vector<Linear> up;
    std::vector<Linear> down;
    for (int32_t expert = 0; expert < desc.num_experts; ++expert)
    {
        int64_t const first = buffers.first_row[expert];
        int64_t const rows = buffers.first_row[expert + 1] - first;
        if (rows == 0)
        {
            continue;
        }
        float const* const input = buffers.rows + first * width;
        q2export_dtype const dtype = desc.weight_dtype;
        up.push_back({rows, width, inner, input, experts.gate[expert], nullptr, buffers.gate + first * inner, dtype, 0});
        up.push_back({rows, width, inner, input, experts.up[expert], nullptr, buffers.up + first * inner, dtype, 0});
        down.push_back({rows, inner, width, buffers.gate + first * inner, experts.down[expert], nullptr,
            buffers.results + first * width, dtype, 0});
    }
    run_layers(up, pool);
    MoeKernels const& kernels = chosen(kTables);
    parallel_for(pool, buffers.slots,
        [&](int64_t row) { kernels.swiglu(buffers.gate + row * inner, buffers.up + row * inner, inner); });
    run_layers(down, pool);
    parallel_for(pool, desc.num_tokens, [&](int64_t token) {
        float* const target = output + token * width;
        std::fill(target, target + width, 0.0f);
        for (int64_t slot = token * desc.top_k; slot < (token + 1) * desc.top_k; ++slot)
        {
            float const* const result = buffers.results + buffers.row_of_slot[slot] * width;
            for (int64_t i = 0; i < width; ++i)
            {
                target[i] += result[i] * buffers.weights[slot];
            }
        }
    });
}

} // namespace
} // namespace q2export::cpu

extern "C" q2export_status q2export_cpu_moe(q2export_cpu_moe_desc const* desc, float const* hidden,
    float const* router_logits, void const* const* gate, void const* const* up, void const* const* down, float* output,
    q2export_cpu_parallel_for const* parallel_for)
{
    using namespace q2export::cpu;
    Q2EXPORT_TRY(check(desc));
    if (desc->num_tokens == 0)
    {
        return Q2EXPORT_SUCCESS;
    }
    Q2EXPORT_TRY(check_pointer(kOp, "hidden", hidden));
    Q2EXPORT_TRY(check_pointer(kOp, "router_logits", router_logits));
    Q2EXPORT_TRY(check_pointer(kOp, "output", output));
    for (void const* const* table : {gate, up, down})
    {
        Q2EXPORT_TRY(check_pointer(kOp, "experts", table));
        for (int32_t expert = 0; expert < desc->num_experts; ++expert)
        {
            Q2EXPORT_TRY(check_pointer(kOp, "an expert's weight", table[expert]));
        }
    }
    Experts const experts{reinterpret_cast<Bytes const*>(gate), reinterpret_cast<Bytes const*>(up),
        reinterpret_cast<Bytes const*>(down)};
    run(*desc, hidden, router_logits, experts, output, parallel_for);
    return Q2EXPORT_SUCCESS;
}
