// Codes to elements, exactly and a register of two at a time, by placing their bits in the significand of a constant:
// 1024 + code is an fp16 number and 128 + code a bf16 number whose low bits are the code's. Kim et al. 2022 ("Who Says
// Elephants Can't Run") and Frantar et al. 2024 (MARLIN, arXiv 2408.11743) describe the technique.
#pragma once

#include <cstdint>
#include <type_traits>

#include <cuda_fp16.h>

#include "common/ptx.cuh"

namespace q2export
{

// What a code's bits are put into, and minus what the result is more than the weight.
template <typename Element>
struct Magic;

template <>
struct Magic<__half>
{
    static constexpr uint32_t kBase = 0x64006400; // 1024, 1024
    static constexpr uint32_t kOne = 0x3C003C00;
    static constexpr uint32_t kMinusBase4 = 0xE408E408; // -(1024 + 8)
    static constexpr uint32_t kMinusBase8 = 0xE480E480; // -(1024 + 128)
};

template <>
struct Magic<__nv_bfloat16>
{
    static constexpr uint32_t kBase = 0x43004300; // 128, 128
    static constexpr uint32_t kOne = 0x3F803F80;
    static constexpr uint32_t kMinusBase4 = 0xC308C308; // -(128 + 8)
    static constexpr uint32_t kMinus256 = 0xC380C380; // bit 7 makes it -128
};

// Eight codes of 4 bits, the first in the lowest, minus 8.
template <typename Element>
__device__ inline void dequantize4(uint32_t (&pairs)[4], uint32_t codes)
{
    using Constants = Magic<Element>;
    uint32_t const odd = codes >> 4;
#pragma unroll
    for (int i = 0; i < 4; ++i)
    {
        // Byte i of `codes` in the low half, of `odd` in the high one; what is beside the code is masked away.
        uint32_t const both = permute_bytes(codes, odd, 0x4400U + 0x1111U * i);
        pairs[i] = multiply_add2<Element>(
            (both & 0x000F000FU) | Constants::kBase, Constants::kOne, Constants::kMinusBase4);
    }
}

// Two codes of 8 bits, bytes 2 * pair and the next of `codes`, minus 128.
template <typename Element>
__device__ inline uint32_t dequantize8(uint32_t codes, int pair)
{
    using Constants = Magic<Element>;
    if constexpr (std::is_same_v<Element, __half>)
    {
        uint32_t const placed = permute_bytes(codes, Constants::kBase, pair == 0 ? 0x7150U : 0x7352U);
        return multiply_add2<Element>(placed, Constants::kOne, Constants::kMinusBase8);
    }
    else
    {
        // Seven bits fit beside 128. With the eighth, the code is as much above 128 as the seven say: 128 is taken away
        // there, and 256 elsewhere.
        uint32_t const placed = permute_bytes(codes, 0, pair == 0 ? 0x4140U : 0x4342U);
        return multiply_add2<Element>((placed & 0x007F007FU) | Constants::kBase, Constants::kOne,
            (placed & 0x00800080U) ^ Constants::kMinus256);
    }
}

} // namespace q2export
