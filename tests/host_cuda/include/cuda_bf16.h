// __nv_bfloat16 on the host.
#pragma once

#include <cstdint>
#include <cstring>

struct __nv_bfloat16
{
    uint16_t bits;
};

struct alignas(4) __nv_bfloat162
{
    __nv_bfloat16 x, y;
};

inline float __bfloat162float(__nv_bfloat16 value)
{
    uint32_t const bits = static_cast<uint32_t>(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

// To nearest, ties to even; a NaN keeps its quiet bit.
inline __nv_bfloat16 __float2bfloat16_rn(float value)
{
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (value != value)
    {
        return {static_cast<uint16_t>(bits >> 16 | 0x40)};
    }
    return {static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}
