// ldmatrix and mma, by the layouts that plugins/csrc/kernels/common/ptx.cuh describes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "intrinsics.h"
#include "machine/block.h"

namespace host_cuda
{

// Elements to float, exactly.
using Widen = void (*)(uint16_t const* elements, float* values, size_t count);

template <typename Element>
void widen_all(uint16_t const* elements, float* values, size_t count)
{
    static_assert(std::is_same_v<Element, __half> || std::is_same_v<Element, __nv_bfloat16>);
    for (size_t i = 0; i < count; ++i)
    {
        if constexpr (std::is_same_v<Element, __nv_bfloat16>)
        {
            values[i] = __uint_as_float(static_cast<uint32_t>(elements[i]) << 16);
        }
        else
        {
            // Exponent and mantissa to float's places, then the exponent's bias; the compiler's conversion is a call.
            uint32_t const magnitude = (elements[i] & 0x7FFFU) << 13;
            bool const is_finite = (elements[i] & 0x7C00U) != 0x7C00U;
            float const value
                = is_finite ? __uint_as_float(magnitude) * 0x1p112F : __uint_as_float(magnitude | 0x7F800000U);
            values[i] = (elements[i] & 0x8000U) != 0 ? -value : value;
        }
    }
}

void load_matrices(Site const& site, uint32_t* registers, unsigned count, void const* row, bool transposed);

uint32_t transpose_matrix(Site const& site, uint32_t pair);

void multiply_m16n8k16(Site const& site, float (&accumulator)[4], uint32_t const (&a)[4], uint32_t const (&b)[2],
    Widen widen);

} // namespace host_cuda
