// Linear layers over packed weights of 4 and 8 bits: what the instruction sets implement.
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
    q2export_dtype scale_dtype;
    Bytes codes;
    Bytes scales;
    Bytes zero_points; // or null

    int64_t blocks() const
    {
        return in_features / block_size;
    }

    int64_t code_stride() const // bytes
    {
        return in_features * bits / 8;
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
        int64_t const index = out * blocks() + block;
        return scale_dtype == Q2EXPORT_FLOAT16 ? Float16::read(scales + index * 2) : Float32::read(scales + index * 4);
    }
};

// Rows of input rounded to int8, in the order in which an instruction set takes them: `chunks` of one vector of sums each.
struct RoundedRows
{
    int64_t chunks;
    int8_t* values;   // [rows, chunks * chunk length]; of 4 bits: a chunk's even elements, then its odd ones
    int32_t* offsets; // [rows, chunks * width], minus the default zero point times each lane's sum of values
    float* sums;      // [rows, chunks * width], each lane's sum of values; only where there are zero points
    float* scales;    // [rows, chunks * width], each lane's
};

struct QuantizedLinearKernels
{
    int64_t direct_rows; // up to which codes are streamed, and tasks are better long
    // Bytes that RoundedRows of a call take.
    size_t (*rounded_bytes)(PackedWeight const& weight, int64_t rows);
    RoundedRows (*place)(PackedWeight const& weight, int64_t rows, void* memory);
    void (*round_row)(PackedWeight const& weight, float const* input, RoundedRows const& rounded, int64_t row);
    // linear.weight is not used.
    void (*multiply_rounded)(
        Linear const& linear, PackedWeight const& weight, RoundedRows const& rounded, LinearTask const& task);
    void (*multiply_exact)(Linear const& linear, PackedWeight const& weight, LinearTask const& task);
};

extern QuantizedLinearKernels const kQuantizedLinearPortable;
extern QuantizedLinearKernels const kQuantizedLinearAvx2;
extern QuantizedLinearKernels const kQuantizedLinearAvx512;

} // namespace q2export::cpu
