// plugins/csrc/kernels/common/ptx.cuh for the host: the same functions, found in its place.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "machine/matrix.h"

namespace q2export
{

inline unsigned char* dynamic_shared()
{
    return host_cuda::dynamic_shared_memory();
}

inline void copy_async_16(
    void* shared, void const* global, bool valid = true, host_cuda::Site site = host_cuda::here("cp.async"))
{
    host_cuda::start_copy(site, shared, global, 16, valid);
}

inline void copy_async_16_streamed(
    void* shared, void const* global, bool valid = true, host_cuda::Site site = host_cuda::here("cp.async"))
{
    host_cuda::start_copy(site, shared, global, 16, valid);
}

template <int kBytes>
inline void copy_async_small(void* shared, void const* global, host_cuda::Site site = host_cuda::here("cp.async"))
{
    host_cuda::start_copy(site, shared, global, kBytes, true);
}

inline void copy_async_commit()
{
    host_cuda::commit_copies();
}

template <int kPending>
inline void copy_async_wait()
{
    host_cuda::wait_for_copies(kPending);
}

inline void load_matrix_x4(
    uint32_t (&registers)[4], void const* row, host_cuda::Site site = host_cuda::here("ldmatrix.x4"))
{
    host_cuda::load_matrices(site, registers, 4, row, false);
}

inline void load_matrix_x4_transposed(
    uint32_t (&registers)[4], void const* row, host_cuda::Site site = host_cuda::here("ldmatrix.x4.trans"))
{
    host_cuda::load_matrices(site, registers, 4, row, true);
}

template <typename Value>
HOST_CUDA_UNSEEN Value load_operand(void const* shared)
{
    host_cuda::record_warp_read(shared, sizeof(Value), __builtin_return_address(0));
    Value value;
    std::memcpy(&value, shared, sizeof value);
    return value;
}

inline void load_matrix_x2(
    uint32_t (&registers)[2], void const* row, host_cuda::Site site = host_cuda::here("ldmatrix.x2"))
{
    host_cuda::load_matrices(site, registers, 2, row, false);
}

template <typename Element>
inline void mma_m16n8k16(float (&accumulator)[4], uint32_t const (&a)[4], uint32_t const (&b)[2],
    host_cuda::Site site = host_cuda::here("mma.m16n8k16"))
{
    host_cuda::multiply_m16n8k16(site, accumulator, a, b, host_cuda::widen_all<Element>);
}

template <typename Element>
inline void mma_m16n8k16_zero(float (&sums)[4], uint32_t const (&a)[4], uint32_t const (&b)[2],
    host_cuda::Site site = host_cuda::here("mma.m16n8k16"))
{
    sums[0] = sums[1] = sums[2] = sums[3] = 0.0F;
    host_cuda::multiply_m16n8k16(site, sums, a, b, host_cuda::widen_all<Element>);
}

inline uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector)
{
    uint64_t const bytes = static_cast<uint64_t>(high) << 32 | low;
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i)
    {
        result |= static_cast<uint32_t>(bytes >> (selector >> 4 * i & 7) * 8 & 0xFF) << 8 * i;
    }
    return result;
}

inline uint32_t transpose_matrix(uint32_t pair, host_cuda::Site site = host_cuda::here("movmatrix.trans"))
{
    return host_cuda::transpose_matrix(site, pair);
}

template <typename Element>
inline uint32_t pack2(float low, float high)
{
    Element pair[2];
    if constexpr (std::is_same_v<Element, __half>)
    {
        pair[0] = __float2half_rn(low);
        pair[1] = __float2half_rn(high);
    }
    else
    {
        pair[0] = __float2bfloat16_rn(low);
        pair[1] = __float2bfloat16_rn(high);
    }
    uint32_t packed;
    std::memcpy(&packed, pair, sizeof packed);
    return packed;
}

template <typename Element>
inline float2 unpack2(uint32_t packed)
{
    uint16_t const bits[2] = {static_cast<uint16_t>(packed), static_cast<uint16_t>(packed >> 16)};
    float values[2];
    host_cuda::widen_all<Element>(bits, values, 2);
    return {values[0], values[1]};
}

// The product of two elements is exact in float; the sum is rounded twice, which is once where float holds it exactly.
template <typename Element>
inline uint32_t multiply_add2(uint32_t a, uint32_t b, uint32_t c)
{
    float2 const x = unpack2<Element>(a);
    float2 const y = unpack2<Element>(b);
    float2 const z = unpack2<Element>(c);
    return pack2<Element>(x.x * y.x + z.x, x.y * y.y + z.y);
}

inline float exp2_fast(float x)
{
    constexpr float kSmallestNormal = 1.17549435e-38F;
    float const y = std::exp2(x);
    return y < kSmallestNormal ? 0.0F : y;
}

inline int recomputed(int value)
{
    return value;
}

inline void wait_for_previous_kernel() {} // kernels do not overlap here

inline void allow_next_kernel() {}

inline uint4 load_once_16(void const* global, host_cuda::Site site = host_cuda::here("ld.global.nc.v4"))
{
    host_cuda::check_alignment(site, global);
    host_cuda::check_shared(site, global, false);
    uint4 value;
    std::memcpy(&value, global, sizeof value);
    return value;
}

} // namespace q2export
