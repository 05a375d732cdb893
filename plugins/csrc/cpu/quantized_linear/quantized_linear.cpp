// Arguments of linear layers over packed weights, and how they are cut into tasks.
#include "quantized_linear/quantized_linear.h"

#include <algorithm>

#include "common/error.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "common/scratch.h"

namespace q2export::cpu
{
namespace
{

constexpr char kOp[] = "quantized_linear";
constexpr int64_t kTaskRows = 768;   // of input that share unpacked weights
constexpr int64_t kTaskOuts = 64;
constexpr int64_t kStreamedRows = 16; // up to which tasks are better long

#if Q2EXPORT_CPU_X86
constexpr QuantizedLinearKernels const* kTables[3]
    = {&kQuantizedLinearPortable, &kQuantizedLinearAvx2, &kQuantizedLinearAvx512};
#else
constexpr QuantizedLinearKernels const* kTables[3]
    = {&kQuantizedLinearPortable, &kQuantizedLinearPortable, &kQuantizedLinearPortable};
#endif

int64_t ceil_div(int64_t value, int64_t divisor)
{
    return (value + divisor - 1) / divisor;
}

q2export_status check(q2export_cpu_quantized_linear_desc const* desc)
{
    Q2EXPORT_TRY(check_pointer(kOp, "desc", desc));
    Q2EXPORT_TRY(check_range(kOp, "rows", desc->rows, 0, INT32_MAX));
    Q2EXPORT_TRY(check_range(kOp, "in_features", desc->in_features, 1, INT32_MAX));
    Q2EXPORT_TRY(check_range(kOp, "out_features", desc->out_features, 1, INT32_MAX));
    Q2EXPORT_TRY(check_packed(kOp, desc->bits, desc->block_size));
    Q2EXPORT_TRY(check_multiple(kOp, "in_features", desc->in_features, desc->block_size));
    Q2EXPORT_TRY(check_range(
        kOp, "activations", desc->activations, Q2EXPORT_CPU_ACTIVATIONS_FLOAT32, Q2EXPORT_CPU_ACTIVATIONS_INT8));
    Q2EXPORT_TRY(check_elements(kOp, "input", desc->rows, desc->in_features));
    Q2EXPORT_TRY(check_elements(kOp, "weight", desc->out_features, desc->in_features));
    return check_elements(kOp, "output", desc->rows, desc->out_features);
}

// How a call is cut: few rows stream their weights in long runs, more share panels of them.
struct Cut
{
    explicit Cut(QuantizedLinear const& call)
    {
        Linear const& linear = call.linear;
        bool const exact = call.rounded.groups == 0;
        int64_t const group_rows = exact ? 1 : call.rounded.group_rows;
        int64_t const groups = ceil_div(linear.rows, group_rows);
        row_tasks = ceil_div(linear.rows, kTaskRows);
        task_rows = ceil_div(groups, row_tasks) * group_rows;
        row_tasks = ceil_div(linear.rows, task_rows);
        int64_t const row_bytes = call.weight.code_stride();
        int64_t const streamed = ceil_div(streamed_bytes(linear.out_features * row_bytes), row_bytes * kTaskOuts) * kTaskOuts;
        outs = linear.rows <= kStreamedRows && !exact ? streamed : kTaskOuts;
        out_tasks = ceil_div(linear.out_features, outs);
    }

    int64_t outs; // of a task
    int64_t out_tasks;
    int64_t task_rows;
    int64_t row_tasks;
};

void run(QuantizedLinear call, q2export_cpu_activations activations, q2export_cpu_parallel_for const* pool)
{
    Linear const& linear = call.linear;
    QuantizedLinearKernels const& kernels = quantized_linear_kernels();
    if (activations == Q2EXPORT_CPU_ACTIVATIONS_INT8)
    {
        auto const bytes = static_cast<size_t>(kernels.rounded_bytes(call.weight, linear.rows));
        call.rounded = kernels.place(call.weight, linear.rows, thread_scratch(Scratch::kActivations, bytes));
        // Few rows are rounded in less time than threads take to begin.
        parallel_for(linear.rows <= kStreamedRows ? nullptr : pool, call.rounded.groups, [&](int64_t group) {
            auto const row_bytes = static_cast<size_t>(rounded_row_bytes(call.weight));
            RoundedRow const rounded(call.weight, thread_scratch(Scratch::kRoundedRow, row_bytes));
            int64_t const first = group * call.rounded.group_rows;
            for (int64_t row = first; row < std::min(first + call.rounded.group_rows, linear.rows); ++row)
            {
                kernels.round_row(call.weight, linear.input + row * linear.in_features, rounded);
                kernels.arrange(call.weight, rounded, linear.rows, call.rounded, row);
            }
        });
    }
    parallel_for(
        pool, quantized_linear_tasks(call), [&](int64_t index) { run_quantized_linear_task(call, index); });
}

} // namespace

QuantizedLinearKernels const& quantized_linear_kernels()
{
    return chosen(kTables);
}

q2export_status check_packed(char const* op, int32_t bits, int32_t block_size)
{
    Q2EXPORT_TRY(check_range(op, "bits", bits, 4, 8));
    Q2EXPORT_TRY(check_multiple(op, "bits", bits, 4));
    if (block_size != 32 && block_size != 64 && block_size != 128)
    {
        return fail(Q2EXPORT_INVALID_ARGUMENT, "%s: block_size is %d, expected 32, 64 or 128", op, block_size);
    }
    return Q2EXPORT_SUCCESS;
}

int64_t quantized_linear_tasks(QuantizedLinear const& call)
{
    Cut const cut(call);
    return cut.out_tasks * cut.row_tasks;
}

void run_quantized_linear_task(QuantizedLinear const& call, int64_t index)
{
    Cut const cut(call);
    int64_t const first_row = index / cut.out_tasks * cut.task_rows;
    int64_t const first_out = index % cut.out_tasks * cut.outs;
    QuantizedLinearKernels const& kernels = quantized_linear_kernels();
    (call.rounded.groups == 0 ? kernels.multiply_exact : kernels.multiply)(call,
        {first_row, std::min(first_row + cut.task_rows, call.linear.rows), first_out,
            std::min(first_out + cut.outs, call.linear.out_features)});
}

} // namespace q2export::cpu

extern "C" q2export_status q2export_cpu_quantized_linear(q2export_cpu_quantized_linear_desc const* desc,
    float const* input, void const* codes, void const* scales, void const* zero_points, void const* bias, float* output,
    q2export_cpu_parallel_for const* parallel_for)
{
    using namespace q2export::cpu;
    Q2EXPORT_TRY(check(desc));
    if (bias != nullptr)
    {
        Q2EXPORT_TRY(check_range(kOp, "bias_dtype", desc->bias_dtype, Q2EXPORT_FLOAT32, Q2EXPORT_BFLOAT16));
    }
    if (desc->rows == 0)
    {
        return Q2EXPORT_SUCCESS;
    }
    Q2EXPORT_TRY(check_pointer(kOp, "input", input));
    Q2EXPORT_TRY(check_pointer(kOp, "codes", codes));
    Q2EXPORT_TRY(check_pointer(kOp, "scales", scales));
    Q2EXPORT_TRY(check_pointer(kOp, "output", output));
    run({{desc->rows, desc->in_features, desc->out_features, input, nullptr, static_cast<Bytes>(bias), output,
             Q2EXPORT_FLOAT32, desc->bias_dtype},
            {desc->out_features, desc->in_features, desc->bits, desc->block_size, static_cast<Bytes>(codes),
                static_cast<Bytes>(scales), static_cast<Bytes>(zero_points)},
            {}},
        desc->activations, parallel_for);
    return Q2EXPORT_SUCCESS;
}
