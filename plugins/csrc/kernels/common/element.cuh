// Element types and their conversion to and from float, in which all arithmetic is done.
#pragma once

#include <cstddef>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "q2export/kernels.h"

namespace q2export
{

__device__ inline float load(float const* source)
{
    return *source;
}

__device__ inline float load(__half const* source)
{
    return __half2float(*source);
}

__device__ inline float load(__nv_bfloat16 const* source)
{
    return __bfloat162float(*source);
}

__device__ inline void store(float* target, float value)
{
    *target = value;
}

__device__ inline void store(__half* target, float value)
{
    *target = __float2half_rn(value);
}

__device__ inline void store(__nv_bfloat16* target, float value)
{
    *target = __float2bfloat16_rn(value);
}

// Bytes of one element; 0 for an unknown type.
inline size_t element_size(q2export_dtype dtype)
{
    switch (dtype)
    {
    case Q2EXPORT_FLOAT32: return sizeof(float);
    case Q2EXPORT_FLOAT16: return sizeof(__half);
    case Q2EXPORT_BFLOAT16: return sizeof(__nv_bfloat16);
    default: return 0;
    }
}

// Calls `body` with a null pointer to the element type of `dtype`, which the description check has found valid.
template <typename Body>
q2export_status with_element_type(q2export_dtype dtype, Body body)
{
    switch (dtype)
    {
    case Q2EXPORT_FLOAT16: return body(static_cast<__half*>(nullptr));
    case Q2EXPORT_BFLOAT16: return body(static_cast<__nv_bfloat16*>(nullptr));
    default: return body(static_cast<float*>(nullptr));
    }
}

} // namespace q2export
