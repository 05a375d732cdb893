// Mixture of experts over packed weights of 4 and 8 bits.
#include <algorithm>
#include <vector>

#include "common/error.h"
#include "common/scratch.h"
#include "moe/dispatch.h"
#include "moe/moe.h"
#include "quantized_linear/quantized_linear.h"
#include "swiglu/swiglu.h"

namespace q2export::cpu
{
namespace
{

constexpr char kOp[] = "quantized_moe";

// One matrix of all experts: that of expert 0 where they lie in a row.
struct Matrices
{
    PackedWeight first;

    PackedWeight of(int32_t expert) const
    {
        PackedWeight weight = first;
        int64_t const skipped = expert * first.out_features;
        weight.codes += skipped * first.code_stride();
        weight.scales += skipped * first.scale_stride();
        weight.zero_points = weight.zero_points == nullptr ? nullptr : weight.zero_points + skipped * first.zero_point_stride();
        return weight;
    }
};

// A call's floats, row by row as Dispatch sorts them.
struct Buffers
{
    Buffers(MoeShape const& shape, bool int8)
    {
        int64_t const outputs = shape.hidden_size + 2 * shape.intermediate_size;
        int64_t const inputs = int8 ? 0 : shape.hidden_size + shape.intermediate_size;
        auto const floats = static_cast<size_t>(shape.slots() * (outputs + inputs));
        gate_up = static_cast<float*>(thread_scratch(Scratch::kExpertRows, floats * sizeof(float)));
        results = gate_up + shape.slots() * 2 * shape.intermediate_size;
        rows = int8 ? nullptr : results + shape.slots() * shape.hidden_size;
        inner = int8 ? nullptr : rows + shape.slots() * shape.hidden_size;
    }

    float* gate_up; // [slots, intermediate_size, 2]
    float* results; // [slots, hidden_size]
    float* rows;    // [slots, hidden_size]; null where activations are int8
    float* inner;   // [slots, intermediate_size]; null where activations are int8
};

// The calls of one matrix, one for each expert that has tokens.
std::vector<QuantizedLinear> layers(MoeShape const& shape, Dispatch const& dispatch, Matrices const& matrices,
    float const* input, float* output)
{
    std::vector<QuantizedLinear> made;
    int64_t const width = matrices.first.in_features;
    int64_t const outs = matrices.first.out_features;
    for (int32_t expert = 0; expert < shape.num_experts; ++expert)
    {
        if (int64_t const rows = dispatch.rows(expert); rows != 0)
        {
            int64_t const first = dispatch.first_row(expert);
            made.push_back({{rows, width, outs, input == nullptr ? nullptr : input + first * width, nullptr, nullptr,
                                output + first * outs, Q2EXPORT_FLOAT32, Q2EXPORT_FLOAT32},
                matrices.of(expert), {}});
        }
    }
    return made;
}

int64_t rounded_bytes(std::vector<QuantizedLinear> const& made)
{
    int64_t bytes = 0;
    for (QuantizedLinear const& layer : made)
    {
        bytes += quantized_linear_kernels().rounded_bytes(layer.weight, layer.linear.rows);
    }
    return bytes;
}

unsigned char* place_rounded(std::vector<QuantizedLinear>& made, unsigned char* memory)
{
    QuantizedLinearKernels const& kernels = quantized_linear_kernels();
    for (QuantizedLinear& layer : made)
    {
        layer.rounded = kernels.place(layer.weight, layer.linear.rows, memory);
        memory += kernels.rounded_bytes(layer.weight, layer.linear.rows);
    }
    return memory;
}

// Rounds every token once and puts it into the place that each of its experts has for it. `made` in the order of experts.
void round_tokens(MoeShape const& shape, float const* hidden, Dispatch const& dispatch,
    std::vector<QuantizedLinear> const& made, unsigned char* memory, q2export_cpu_parallel_for const* threads)
{
    QuantizedLinearKernels const& kernels = quantized_linear_kernels();
    PackedWeight const& weight = made.front().weight;
    int64_t const stride = rounded_row_bytes(weight);
    parallel_for(threads, shape.num_tokens, [&](int64_t token) {
        kernels.round_row(weight, hidden + token * shape.hidden_size, RoundedRow(weight, memory + token * stride));
    });
    parallel_for(threads, static_cast<int64_t>(made.size()), [&](int64_t index) {
        QuantizedLinear const& layer = made[static_cast<size_t>(index)];
        int64_t const first = (layer.linear.output - made.front().linear.output) / layer.linear.out_features;
        for (int64_t row = 0; row < layer.linear.rows; ++row)
        {
            RoundedRow const rounded(weight, memory + dispatch.token(first + row) * stride);
            kernels.arrange(weight, rounded, layer.linear.rows, layer.rounded, row);
        }
    });
}

// SwiGLU of what `up` returned, rounded for `down`.
void round_inner(MoeShape const& shape, std::vector<QuantizedLinear> const& up, std::vector<QuantizedLinear> const& down,
    q2export_cpu_parallel_for const* threads)
{
    QuantizedLinearKernels const& kernels = quantized_linear_kernels();
    SwigluKernels const& activation = swiglu_kernels();
    int64_t const inner = shape.intermediate_size;
    PackedWeight const& weight = down.front().weight;
    parallel_for(threads, static_cast<int64_t>(down.size()), [&](int64_t index) {
        QuantizedLinear const& layer = down[static_cast<size_t>(index)];
        float const* const pairs = up[static_cast<size_t>(index)].linear.output;
        int64_t const bytes = rounded_row_bytes(weight) + inner * Float32::kBytes;
        auto* const memory
            = static_cast<unsigned char*>(thread_scratch(Scratch::kRoundedRow, static_cast<size_t>(bytes)));
        RoundedRow const rounded(weight, memory);
        float* const values = reinterpret_cast<float*>(memory + rounded_row_bytes(weight));
        for (int64_t row = 0; row < layer.linear.rows; ++row)
        {
            activation.swiglu_pairs(pairs + row * 2 * inner, values, inner);
            kernels.round_row(weight, values, rounded);
            kernels.arrange(weight, rounded, layer.linear.rows, layer.rounded, row);
        }
    });
}

void run(MoeShape const& shape, float const* hidden, float const* router_logits, Matrices const& gate_up,
    Matrices const& down, bool int8, float* output, q2export_cpu_parallel_for const* pool)
{
    Dispatch const dispatch(shape, router_logits, pool);
    Buffers const buffers(shape, int8);
    q2export_cpu_parallel_for const* const threads = threads_for(shape.num_tokens, pool);
    std::vector<QuantizedLinear> first = layers(shape, dispatch, gate_up, buffers.rows, buffers.gate_up);
    std::vector<QuantizedLinear> second = layers(shape, dispatch, down, buffers.inner, buffers.results);
    if (int8)
    {
        int64_t const bytes
            = rounded_bytes(first) + rounded_bytes(second) + shape.num_tokens * rounded_row_bytes(gate_up.first);
        auto* const memory
            = static_cast<unsigned char*>(thread_scratch(Scratch::kActivations, static_cast<size_t>(bytes)));
        unsigned char* const tokens = place_rounded(second, place_rounded(first, memory));
        round_tokens(shape, hidden, dispatch, first, tokens, threads);
        run_layers(first, pool, quantized_linear_tasks, run_quantized_linear_task);
        round_inner(shape, first, second, threads);
    }
    else
    {
        parallel_for(threads, shape.slots(), [&](int64_t row) {
            float const* const source = hidden + dispatch.token(row) * shape.hidden_size;
            std::copy_n(source, shape.hidden_size, buffers.rows + row * shape.hidden_size);
        });
        run_layers(first, pool, quantized_linear_tasks, run_quantized_linear_task);
        int64_t const inner = shape.intermediate_size;
        SwigluKernels const& kernels = swiglu_kernels();
        parallel_for(threads, shape.slots(), [&](int64_t row) {
            kernels.swiglu_pairs(buffers.gate_up + row * 2 * inner, buffers.inner + row * inner, inner);
        });
    }
    run_layers(second, pool, quantized_linear_tasks, run_quantized_linear_task);
    dispatch.combine(buffers.results, output, pool);
}

} // namespace
} // namespace q2export::cpu

extern "C" q2export_status q2export_cpu_quantized_moe(q2export_cpu_quantized_moe_desc const* desc, float const* hidden,
    float const* router_logits, void const* gate_up, void const* gate_up_scale, void const* gate_up_zero_point,
    void const* down, void const* down_scale, void const* down_zero_point, float* output,
    q2export_cpu_parallel_for const* parallel_for)
{
    using namespace q2export::cpu;
    Q2EXPORT_TRY(check_pointer(kOp, "desc", desc));
    MoeShape const shape{desc->num_tokens, desc->hidden_size, desc->intermediate_size, desc->num_experts, desc->top_k,
        desc->norm_topk_prob != 0};
    Q2EXPORT_TRY(check_moe(kOp, shape, desc->norm_topk_prob));
    Q2EXPORT_TRY(check_packed(kOp, desc->bits, desc->block_size));
    Q2EXPORT_TRY(check_multiple(kOp, "hidden_size", desc->hidden_size, desc->block_size));
    Q2EXPORT_TRY(check_multiple(kOp, "intermediate_size", desc->intermediate_size, desc->block_size));
    Q2EXPORT_TRY(check_range(
        kOp, "activations", desc->activations, Q2EXPORT_CPU_ACTIVATIONS_FLOAT32, Q2EXPORT_CPU_ACTIVATIONS_INT8));
    if (desc->num_tokens == 0)
    {
        return Q2EXPORT_SUCCESS;
    }
    Q2EXPORT_TRY(check_moe_pointers(kOp, hidden, router_logits, output));
    Q2EXPORT_TRY(check_pointer(kOp, "gate_up", gate_up));
    Q2EXPORT_TRY(check_pointer(kOp, "gate_up_scale", gate_up_scale));
    Q2EXPORT_TRY(check_pointer(kOp, "down", down));
    Q2EXPORT_TRY(check_pointer(kOp, "down_scale", down_scale));
    auto const matrices = [&](int64_t outs, int64_t ins, void const* codes, void const* scales, void const* points) {
        return Matrices{{outs, ins, desc->bits, desc->block_size, static_cast<Bytes>(codes), static_cast<Bytes>(scales),
            static_cast<Bytes>(points)}};
    };
    run(shape, hidden, router_logits,
        matrices(2 * desc->intermediate_size, desc->hidden_size, gate_up, gate_up_scale, gate_up_zero_point),
        matrices(desc->hidden_size, desc->intermediate_size, down, down_scale, down_zero_point),
        desc->activations == Q2EXPORT_CPU_ACTIVATIONS_INT8, output, parallel_for);
    return Q2EXPORT_SUCCESS;
}
