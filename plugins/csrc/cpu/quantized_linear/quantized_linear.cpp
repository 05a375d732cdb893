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
constexpr int64_t kTaskRows = 256;        // of input that share a tile of weights
constexpr int64_t kTaskOuts = 64;
constexpr int64_t kFewRows = 4;

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
    Q2EXPORT_TRY(check_range(kOp, "bits", desc->bits, 4, 8));
    Q2EXPORT_TRY(check_multiple(kOp, "bits", desc->bits, 4));
    Q2EXPORT_TRY(check_range(kOp, "block_size", desc->block_size, 32, 128));
    if ((desc->block_size & (desc->block_size - 1)) != 0)
    {
        return fail(Q2EXPORT_INVALID_ARGUMENT, "%s: block_size is %d, expected 32, 64 or 128", kOp, desc->block_size);
    }
    Q2EXPORT_TRY(check_multiple(kOp, "in_features", desc->in_features, desc->block_size));
    Q2EXPORT_TRY(check_range(kOp, "scale_dtype", desc->scale_dtype, Q2EXPORT_FLOAT32, Q2EXPORT_FLOAT16));
    Q2EXPORT_TRY(check_range(
        kOp, "activations", desc->activations, Q2EXPORT_CPU_ACTIVATIONS_FLOAT32, Q2EXPORT_CPU_ACTIVATIONS_INT8));
    Q2EXPORT_TRY(check_elements(kOp, "input", desc->rows, desc->in_features));
    Q2EXPORT_TRY(check_elements(kOp, "weight", desc->out_features, desc->in_features));
    return check_elements(kOp, "output", desc->rows, desc->out_features);
}

// Calls body({rows, outputs}) for every task.
template <typename Body>
void for_tasks(
    q2export_cpu_parallel_for const* pool, Linear const& linear, int64_t rows, int64_t outs, Body const& body)
{
    int64_t const out_tasks = ceil_div(linear.out_features, outs);
    int64_t const row_tasks = ceil_div(linear.rows, rows);
    parallel_for(pool, out_tasks * row_tasks, [&](int64_t index) {
        int64_t const row_task = index / out_tasks;
        int64_t const first_out = index % out_tasks * outs;
        body(LinearTask{row_task * linear.rows / row_tasks, (row_task + 1) * linear.rows / row_tasks, first_out,
            std::min(first_out + outs, linear.out_features)});
    });
}

void run(Linear const& linear, PackedWeight const& weight, q2export_cpu_activations activations,
    q2export_cpu_parallel_for const* pool)
{
    QuantizedLinearKernels const& kernels = chosen(kTables);
    if (activations == Q2EXPORT_CPU_ACTIVATIONS_FLOAT32)
    {
        for_tasks(pool, linear, kTaskRows, kTaskOuts,
            [&](LinearTask const& task) { kernels.multiply_exact(linear, weight, task); });
        return;
    }
    void* const memory = thread_scratch(Scratch::kActivations, kernels.rounded_bytes(weight, linear.rows));
    RoundedRows const rounded = kernels.place(weight, linear.rows, memory);
    auto const round
        = [&](int64_t row) { kernels.round_row(weight, linear.input + row * linear.in_features, rounded, row); };
    // One row is rounded in less time than threads take to begin.
    parallel_for(linear.rows < kFewRows ? nullptr : pool, linear.rows, round);
    int64_t const row_bytes = weight.code_stride();
    int64_t const streamed = ceil_div(streamed_bytes(weight.out_features * row_bytes), row_bytes * 4) * 4;
    for_tasks(pool, linear, kTaskRows, linear.rows <= kernels.direct_rows ? streamed : kTaskOuts,
        [&](LinearTask const& task) { kernels.multiply_rounded(linear, weight, rounded, task); });
}

} // namespace
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
    run({desc->rows, desc->in_features, desc->out_features, input, nullptr, static_cast<Bytes>(bias), output,
            Q2EXPORT_FLOAT32, desc->bias_dtype},
        {desc->out_features, desc->in_features, desc->bits, desc->block_size, desc->scale_dtype,
            static_cast<Bytes>(codes), static_cast<Bytes>(scales), static_cast<Bytes>(zero_points)},
        desc->activations, parallel_for);
    return Q2EXPORT_SUCCESS;
}
