// Linear layers of float32 input; included by one source per instruction set.
#pragma once

#include "linear/linear_kernel.h"

namespace q2export::cpu
{
namespace
{

void direct_by_weight(Linear const& linear, LinearTask const& task)
{
    switch (linear.weight_dtype)
    {
    case Q2EXPORT_FLOAT16: direct<Widened<Float16>>(linear, task); break;
    case Q2EXPORT_BFLOAT16: direct<Widened<BFloat16>>(linear, task); break;
    default: direct<Widened<Float32>>(linear, task); break;
    }
}

void packed_by_weight(Linear const& linear, LinearTask const& task)
{
    switch (linear.weight_dtype)
    {
    case Q2EXPORT_FLOAT16: packed<Widened<Float16>>(linear, task); break;
    case Q2EXPORT_BFLOAT16: packed<Widened<BFloat16>>(linear, task); break;
    default: packed<Widened<Float32>>(linear, task); break;
    }
}

constexpr LinearKernels kKernels{kDirectRows, direct_by_weight, packed_by_weight};

} // namespace
} // namespace q2export::cpu
