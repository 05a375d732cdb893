// Rows of a matrix in the packed form, such as those of tokens in a quantized embedding. Every value is exact: 8 bits of
// (code - zero point) times the 11 of a scale.
#include "common/error.h"
#include "common/parallel.h"
#include "quantized_linear/quantized_linear.h"

namespace q2export::cpu
{
namespace
{

constexpr char kOp[] = "quantized_gather";
constexpr int64_t kTaskElements = 16 * 1024; // fewer do not repay a second thread

void gather_row(PackedWeight const& weight, int64_t row, float* output)
{
    Bytes codes = weight.codes + row * weight.code_stride();
    for (int64_t block = 0; block < weight.blocks(); ++block)
    {
        float const scale = weight.scale(row, block);
        int32_t const zero_point = weight.zero_point(row, block);
        auto const value = [=](int32_t code) { return static_cast<float>(code - zero_point) * scale; };
        int64_t const bytes = weight.block_size * weight.bits / 8;
        for (int64_t i = 0; i < bytes; ++i)
        {
            if (weight.bits == 8)
            {
                output[i] = value(codes[i]);
            }
            else
            {
                output[2 * i] = value(codes[i] & 15);
                output[2 * i + 1] = value(codes[i] >> 4);
            }
        }
        codes += bytes;
        output += weight.block_size;
    }
}

q2export_status check(q2export_cpu_quantized_gather_desc const* desc)
{
    Q2EXPORT_TRY(check_pointer(kOp, "desc", desc));
    Q2EXPORT_TRY(check_range(kOp, "count", desc->count, 0, INT32_MAX));
    Q2EXPORT_TRY(check_range(kOp, "rows", desc->rows, 1, INT32_MAX));
    Q2EXPORT_TRY(check_range(kOp, "columns", desc->columns, 1, INT32_MAX));
    Q2EXPORT_TRY(check_packed(kOp, desc->bits, desc->block_size));
    Q2EXPORT_TRY(check_multiple(kOp, "columns", desc->columns, desc->block_size));
    Q2EXPORT_TRY(check_elements(kOp, "weight", desc->rows, desc->columns));
    return check_elements(kOp, "output", desc->count, desc->columns);
}

} // namespace
} // namespace q2export::cpu

extern "C" q2export_status q2export_cpu_quantized_gather(q2export_cpu_quantized_gather_desc const* desc,
    int64_t const* indices, void const* codes, void const* scales, void const* zero_points, float* output,
    q2export_cpu_parallel_for const* parallel_for)
{
    using namespace q2export::cpu;
    Q2EXPORT_TRY(check(desc));
    if (desc->count == 0)
    {
        return Q2EXPORT_SUCCESS;
    }
    Q2EXPORT_TRY(check_pointer(kOp, "indices", indices));
    Q2EXPORT_TRY(check_pointer(kOp, "codes", codes));
    Q2EXPORT_TRY(check_pointer(kOp, "scales", scales));
    Q2EXPORT_TRY(check_pointer(kOp, "output", output));
    for (int64_t i = 0; i < desc->count; ++i)
    {
        Q2EXPORT_TRY(check_range(kOp, "an index", indices[i], 0, desc->rows - 1));
    }
    PackedWeight const weight{desc->rows, desc->columns, desc->bits, desc->block_size, static_cast<Bytes>(codes),
        static_cast<Bytes>(scales), static_cast<Bytes>(zero_points)};
    int64_t const task_rows = (kTaskElements + desc->columns - 1) / desc->columns;
    q2export::cpu::parallel_for(parallel_for, (desc->count + task_rows - 1) / task_rows, [&](int64_t task) {
        int64_t const last = std::min((task + 1) * task_rows, desc->count);
        for (int64_t i = task * task_rows; i < last; ++i)
        {
            gather_row(weight, indices[i], output + i * desc->columns);
        }
    });
    return Q2EXPORT_SUCCESS;
}
