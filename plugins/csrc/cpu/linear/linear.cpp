// Arguments of linear layers, and how they are cut into tasks.
#include "linear/linear.h"

#include <algorithm>

#include "common/error.h"
#include "common/isa.h"
#include "common/parallel.h"

namespace q2export::cpu
{
namespace
{

constexpr char kOp[] = "linear";
constexpr int64_t kTaskBytes = 64 * 1024; // of weights that a task reads: much work for little waiting at the end
constexpr int64_t kTaskRows = 240;        // of input that share a packed tile of weights
constexpr int64_t kTaskOuts = 64;

#if Q2EXPORT_CPU_X86
constexpr LinearKernels const* kTables[3] = {&kLinearPortable, &kLinearAvx2, &kLinearAvx512};
#else
constexpr LinearKernels const* kTables[3] = {&kLinearPortable, &kLinearPortable, &kLinearPortable};
#endif

int64_t ceil_div(int64_t value, int64_t divisor)
{
    return (value + divisor - 1) / divisor;
}

q2export_status check(q2export_cpu_linear_desc const* desc, float const* input, void const* weight, void const* bias,
    float const* output)
{
    Q2EXPORT_TRY(check_pointer(kOp, "desc", desc));
    Q2EXPORT_TRY(check_range(kOp, "rows", desc->rows, 0, INT32_MAX));
    Q2EXPORT_TRY(check_range(kOp, "in_features", desc->in_features, 1, INT32_MAX));
    Q2EXPORT_TRY(check_range(kOp, "out_features", desc->out_features, 1, INT32_MAX));
    Q2EXPORT_TRY(check_range(kOp, "weight_dtype", desc->weight_dtype, Q2EXPORT_FLOAT32, Q2EXPORT_BFLOAT16));
    Q2EXPORT_TRY(check_elements(kOp, "input", desc->rows, desc->in_features));
    Q2EXPORT_TRY(check_elements(kOp, "weight", desc->out_features, desc->in_features));
    Q2EXPORT_TRY(check_elements(kOp, "output", desc->rows, desc->out_features));
    if (bias != nullptr)
    {
        Q2EXPORT_TRY(check_range(kOp, "bias_dtype", desc->bias_dtype, Q2EXPORT_FLOAT32, Q2EXPORT_BFLOAT16));
    }
    if (desc->rows == 0)
    {
        return Q2EXPORT_SUCCESS;
    }
    Q2EXPORT_TRY(check_pointer(kOp, "input", input));
    Q2EXPORT_TRY(check_pointer(kOp, "weight", weight));
    return check_pointer(kOp, "output", output);
}

} // namespace

void run_linear(Linear const& linear, q2export_cpu_parallel_for const* pool)
{
    LinearKernels const& kernels = chosen(kTables);
    bool const direct = linear.rows <= kernels.direct_rows;
    int64_t const weight_bytes = linear.weight_dtype == Q2EXPORT_FLOAT32 ? 4 : 2;
    int64_t const streamed = ceil_div(kTaskBytes, linear.in_features * weight_bytes * 4) * 4;
    int64_t const outs = direct ? streamed : kTaskOuts;
    int64_t const out_tasks = ceil_div(linear.out_features, outs);
    int64_t const row_tasks = direct ? 1 : ceil_div(linear.rows, kTaskRows);
    auto const run = direct ? kernels.direct : kernels.packed;
    parallel_for(pool, out_tasks * row_tasks, [&](int64_t index) {
        int64_t const row_task = index / out_tasks;
        int64_t const first_out = index % out_tasks * outs;
        run(linear,
            {row_task * linear.rows / row_tasks, (row_task + 1) * linear.rows / row_tasks, first_out,
                std::min(first_out + outs, linear.out_features)});
    });
}

} // namespace q2export::cpu

extern "C" q2export_status q2export_cpu_linear(q2export_cpu_linear_desc const* desc, float const* input,
    void const* weight, void const* bias, float* output, q2export_cpu_parallel_for const* parallel_for)
{
    using namespace q2export::cpu;
    Q2EXPORT_TRY(check(desc, input, weight, bias, output));
    run_linear({desc->rows, desc->in_features, desc->out_features, input, static_cast<Bytes>(weight),
                   static_cast<Bytes>(bias), output, desc->weight_dtype, desc->bias_dtype},
        parallel_for);
    return Q2EXPORT_SUCCESS;
}
