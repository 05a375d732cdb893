// Linear layers over packed weights of 4 and 8 bits: what the instruction sets implement.
//
// One order of additions for every path of an instruction set, so that a row has the same bits whatever rows come along:
// a block's products of int8 values are summed as integers, which is exact; its sum times both scales (their product
// first) is added to sum b mod 4 of the output, b being the block's index, from the first block to the last; then
// (sum 0 + sum 2) + (sum 1 + sum 3), then the bias.
#pragma once

#include <cstdint>

#include "common/element.h"
#include "linear/linear.h"
#include "q2export/cpu.h"

namespace q2export::cpu
{

// One matrix in the packed form, see cpu.h.
struct PackedWeight
{
    int64_t out_features;
    int64_t in_features;
    int32_t bits;
    int32_t block_size;
    Bytes codes;
    Bytes scales; // float16
    Bytes zero_points; // or null

    int64_t blocks() const
    {
        return in_features / block_size;
    }

    int64_t code_stride() const // bytes
    {
        return in_features * bits / 8;
    }

    int64_t scale_stride() const
    {
        return blocks() * Float16::kBytes;
    }

    int64_t zero_point_stride() const
    {
        return (blocks() * bits + 7) / 8;
    }

    int32_t default_zero_point() const
    {
        return 1 << (bits - 1);
    }

    int32_t zero_point(int64_t out, int64_t block) const
    {
        if (zero_points == nullptr)
        {
            return default_zero_point();
        }
        Bytes const row = zero_points + out * zero_point_stride();
        return bits == 8 ? row[block] : (row[block / 2] >> (block % 2 * 4)) & 15;
    }

    float scale(int64_t out, int64_t block) const
    {
        return Float16::read(scales + out * scale_stride() + block * Float16::kBytes);
    }
};

// A row of activations rounded to int8 block by block, in order.
struct RoundedRow
{
    // In memory of rounded_row_bytes.
    RoundedRow(PackedWeight const& weight, void* memory)
        : scales(static_cast<float*>(memory))
        , sums(scales + weight.blocks())
        , values(reinterpret_cast<int8_t*>(sums + weight.blocks()))
    {
    }

    float* scales;  // [blocks]
    float* sums;    // [blocks], of the values
    int8_t* values; // [in_features]
};

inline int64_t rounded_row_bytes(PackedWeight const& weight)
{
    return (weight.in_features + weight.blocks() * 8 + 63) / 64 * 64;
}

// Rounded rows in the order in which an instruction set multiplies them, told in few_rows_kernel.h and
// many_rows_kernel.h. Rows come in groups, which tasks do not cut.
struct RoundedRows
{
    int64_t group_rows; // of all groups but the last
    int64_t groups;
    int8_t* values;
    float* scales;
    float* sums;
    int32_t* offsets;
};

// One call. linear.weight is not used; linear.input only where `rounded` has no groups: activations are then float32.
struct QuantizedLinear
{
    Linear linear;
    PackedWeight weight;
    RoundedRows rounded;
};

struct QuantizedLinearKernels
{
    int64_t few_rows; // up to which codes are streamed
    void (*round_row)(PackedWeight const& weight, float const* input, RoundedRow const& rounded);
    // Bytes that RoundedRows take, a multiple of 64, and where they lie in them.
    int64_t (*rounded_bytes)(PackedWeight const& weight, int64_t rows);
    RoundedRows (*place)(PackedWeight const& weight, int64_t rows, void* memory);
    // Puts one row of `rows` into its place.
    void (*arrange)(
        PackedWeight const& weight, RoundedRow const& row, int64_t rows, RoundedRows const& rounded, int64_t index);
    void (*multiply)(QuantizedLinear const& call, LinearTask const& task);
    void (*multiply_exact)(QuantizedLinear const& call, LinearTask const& task);
};

extern QuantizedLinearKernels const kQuantizedLinearPortable;
extern QuantizedLinearKernels const kQuantizedLinearAvx2;
extern QuantizedLinearKernels const kQuantizedLinearAvx512;

// Those of the selected instruction set.
QuantizedLinearKernels const& quantized_linear_kernels();

// Refuses sizes that a packed weight cannot have.
q2export_status check_packed(char const* op, int32_t bits, int32_t block_size);

// Calls as tasks, for callers that run several at once.
int64_t quantized_linear_tasks(QuantizedLinear const& call);
void run_quantized_linear_task(QuantizedLinear const& call, int64_t index);

} // namespace q2export::cpu
