// Arguments of linear layers, and how they are cut into tasks.
#include "linear/input_rows.h"

#include <algorithm>

#include "common/error.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "common/scratch.h"

namespace q2export::cpu
{
namespace
{

constexpr char kOp[] = "linear";
constexpr int64_t kTaskOuts = 64;        // whose weights a task widens
constexpr int64_t kMostBytes = 5 << 20; // of input that share them: the L3 cache has it when the next task asks
constexpr int64_t kLeastRows = 96;       // for which widening costs a few percent
constexpr int64_t kLeastTasks = 12;      // so that no thread waits long for another in the end

#if Q2EXPORT_CPU_X86
constexpr LinearKernels const* kTables[3] = {&kLinearPortable, &kLinearAvx2, &kLinearAvx512};
#else
constexpr LinearKernels const* kTables[3] = {&kLinearPortable, &kLinearPortable, &kLinearPortable};
#endif

int64_t ceil_div(int64_t value, int64_t divisor)
{
    return (value + divisor - 1) / divisor;
}

// What multiplies an input of bfloat16 as it is; null where it has to be widened.
RoundedLinearKernels const* rounded_kernels()
{
#if Q2EXPORT_CPU_X86
    return selected_isa() >= Q2EXPORT_CPU_AVX512_BF16 ? &kRoundedLinearAvx512 : nullptr;
#else
    return nullptr;
#endif
}

LinearKernels const& kernels_for(Linear const& linear)
{
    return linear.rounded != nullptr ? rounded_kernels()->linear : chosen(kTables);
}

// How a call is cut: few rows stream their weights, more share tiles of them.
struct Cut
{
    explicit Cut(Linear const& linear)
        : direct(linear.rows <= kernels_for(linear).direct_rows)
    {
        int64_t const weight_bytes = linear.weight_dtype == Q2EXPORT_FLOAT32 ? 4 : 2;
        int64_t const row_bytes = linear.in_features * weight_bytes;
        int64_t const streamed = ceil_div(streamed_bytes(linear.out_features * row_bytes), row_bytes * 4) * 4;
        outs = direct ? streamed : kTaskOuts;
        out_tasks = ceil_div(linear.out_features, outs);
        int64_t const most_rows = std::max<int64_t>(kLeastRows, kMostBytes / (linear.in_features * 4));
        row_tasks = direct ? 1 : ceil_div(linear.rows, most_rows);
        if (!direct && row_tasks * out_tasks < kLeastTasks)
        {
            int64_t const wanted = std::min(ceil_div(kLeastTasks, out_tasks), linear.rows / kLeastRows);
            row_tasks = std::max(row_tasks, wanted);
        }
    }

    bool direct;
    int64_t outs;
    int64_t out_tasks;
    int64_t row_tasks;
};

// Rounds the input of a call, in memory that the calling thread keeps.
void round_input(q2export_cpu_activations activations, Linear& linear, q2export_cpu_parallel_for const* pool)
{
    size_t const bytes = InputRows::bytes(activations, linear.rows, linear.in_features);
    InputRows const rows(activations, thread_scratch(Scratch::kActivations, bytes), linear.in_features);
    float const* const input = linear.input;
    parallel_for(pool, linear.rows, [&](int64_t row) { rows.put(row, input + row * linear.in_features); });
    rows.feed(0, linear);
}

q2export_status check(q2export_cpu_linear_desc const* desc, float const* input, void const* weight, void const* bias,
    float const* output)
{
    Q2EXPORT_TRY(check_pointer(kOp, "desc", desc));
    Q2EXPORT_TRY(check_range(kOp, "rows", desc->rows, 0, INT32_MAX));
    Q2EXPORT_TRY(check_range(kOp, "in_features", desc->in_features, 1, INT32_MAX));
    Q2EXPORT_TRY(check_range(kOp, "out_features", desc->out_features, 1, INT32_MAX));
    Q2EXPORT_TRY(check_range(kOp, "weight_dtype", desc->weight_dtype, Q2EXPORT_FLOAT32, Q2EXPORT_BFLOAT16));
    Q2EXPORT_TRY(check_activations(kOp, desc->activations, desc->weight_dtype));
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

q2export_status check_activations(char const* op, q2export_cpu_activations activations, q2export_dtype weight_dtype)
{
    if (activations == Q2EXPORT_CPU_ACTIVATIONS_FLOAT32)
    {
        return Q2EXPORT_SUCCESS;
    }
    if (activations != Q2EXPORT_CPU_ACTIVATIONS_BFLOAT16)
    {
        return fail(Q2EXPORT_INVALID_ARGUMENT, "%s: activations is %d, expected float32 (0) or bfloat16 (2)", op,
            activations);
    }
    return weight_dtype == Q2EXPORT_BFLOAT16
        ? Q2EXPORT_SUCCESS
        : fail(Q2EXPORT_UNSUPPORTED, "%s: activations of bfloat16 need weights of bfloat16 (2), weight_dtype is %d",
              op, weight_dtype);
}

InputRows::InputRows(q2export_cpu_activations activations, void* memory, int64_t width)
    : is_rounded_(activations == Q2EXPORT_CPU_ACTIVATIONS_BFLOAT16)
    , round_(is_rounded_ && rounded_kernels() != nullptr ? rounded_kernels()->round_row : nullptr)
    , memory_(memory)
    , width_(width)
{
}

size_t InputRows::bytes(q2export_cpu_activations activations, int64_t rows, int64_t width)
{
    bool const as_bits = activations == Q2EXPORT_CPU_ACTIVATIONS_BFLOAT16 && rounded_kernels() != nullptr;
    return static_cast<size_t>(rows * width) * (as_bits ? sizeof(uint16_t) : sizeof(float));
}

void InputRows::put(int64_t row, float const* source) const
{
    if (round_ != nullptr)
    {
        round_(source, width_, static_cast<uint16_t*>(memory_) + row * width_);
        return;
    }
    float* const target = static_cast<float*>(memory_) + row * width_;
    if (!is_rounded_)
    {
        std::copy_n(source, source == target ? 0 : width_, target);
        return;
    }
    for (int64_t k = 0; k < width_; ++k)
    {
        uint16_t narrow;
        BFloat16::write(&narrow, source[k]);
        target[k] = BFloat16::read(&narrow);
    }
}

void InputRows::feed(int64_t first, Linear& linear) const
{
    if (round_ != nullptr)
    {
        linear.rounded = static_cast<uint16_t*>(memory_) + first * width_;
        return;
    }
    linear.input = static_cast<float*>(memory_) + first * width_;
}

int64_t linear_tasks(Linear const& linear)
{
    Cut const cut(linear);
    return cut.out_tasks * cut.row_tasks;
}

void run_linear_task(Linear const& linear, int64_t index)
{
    Cut const cut(linear);
    int64_t const row_task = index / cut.out_tasks;
    int64_t const first_out = index % cut.out_tasks * cut.outs;
    LinearKernels const& kernels = kernels_for(linear);
    (cut.direct ? kernels.direct : kernels.packed)(linear,
        {row_task * linear.rows / cut.row_tasks, (row_task + 1) * linear.rows / cut.row_tasks, first_out,
            std::min(first_out + cut.outs, linear.out_features)});
}

void run_linear(Linear const& linear, q2export_cpu_parallel_for const* pool)
{
    parallel_for(pool, linear_tasks(linear), [&](int64_t index) { run_linear_task(linear, index); });
}

} // namespace q2export::cpu

extern "C" q2export_status q2export_cpu_linear(q2export_cpu_linear_desc const* desc, float const* input,
    void const* weight, void const* bias, float* output, q2export_cpu_parallel_for const* parallel_for)
{
    using namespace q2export::cpu;
    Q2EXPORT_TRY(check(desc, input, weight, bias, output));
    if (desc->rows == 0)
    {
        return Q2EXPORT_SUCCESS; // a step that only fills the cache asks for no logits
    }
    Linear linear{desc->rows, desc->in_features, desc->out_features, input, static_cast<Bytes>(weight),
        static_cast<Bytes>(bias), output, desc->weight_dtype, desc->bias_dtype};
    if (desc->activations == Q2EXPORT_CPU_ACTIVATIONS_BFLOAT16)
    {
        round_input(desc->activations, linear, parallel_for);
    }
    run_linear(linear, parallel_for);
    return Q2EXPORT_SUCCESS;
}
