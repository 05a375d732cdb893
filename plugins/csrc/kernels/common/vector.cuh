// Sixteen bytes of elements, the widest access of a thread.
#pragma once

#include <cstdint>

#include "common/error.h"
#include "common/ptx.cuh"

namespace q2export
{

constexpr int kVectorBytes = 16;

template <typename Element>
constexpr int kVectorElements = kVectorBytes / static_cast<int>(sizeof(Element));

inline bool is_vector_aligned(void const* pointer)
{
    return reinterpret_cast<uintptr_t>(pointer) % kVectorBytes == 0;
}

// Refuses a tensor that kernels cannot take because they move vectors. A kernel that moves elements would take it, many
// times slower, and nobody would know why.
inline q2export_status check_aligned(char const* op, char const* name, void const* pointer)
{
    if (is_vector_aligned(pointer))
    {
        return Q2EXPORT_SUCCESS;
    }
    return fail(Q2EXPORT_INVALID_ARGUMENT, "%s: %s is at %p, expected a multiple of %d bytes", op, name, pointer,
        kVectorBytes);
}

template <typename Element>
__device__ inline uint4 load_vector(Element const* source)
{
    return *reinterpret_cast<uint4 const*>(source);
}

template <typename Element>
__device__ inline void store_vector(Element* target, uint4 vector)
{
    *reinterpret_cast<uint4*>(target) = vector;
}

// The elements of a vector as floats, and back.
template <typename Element>
__device__ inline void widen(float (&values)[kVectorElements<Element>], uint4 vector)
{
    uint32_t const words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
    {
        if constexpr (sizeof(Element) == sizeof(float))
        {
            values[i] = __uint_as_float(words[i]);
        }
        else
        {
            float2 const pair = unpack2<Element>(words[i]);
            values[2 * i] = pair.x;
            values[2 * i + 1] = pair.y;
        }
    }
}

template <typename Element>
__device__ inline uint4 narrow(float const (&values)[kVectorElements<Element>])
{
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
    {
        if constexpr (sizeof(Element) == sizeof(float))
        {
            words[i] = __float_as_uint(values[i]);
        }
        else
        {
            words[i] = pack2<Element>(values[2 * i], values[2 * i + 1]);
        }
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

} // namespace q2export
