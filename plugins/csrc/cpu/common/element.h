// Element types of weights and caches, in memory: read and written through bytes, at any address. In an unnamed namespace,
// because sources for different instruction sets include it.
#pragma once

#include <cstdint>
#include <cstring>

namespace q2export::cpu
{

using Bytes = unsigned char const*;

namespace
{

template <typename Value>
inline Value read_unaligned(void const* address)
{
    Value value;
    std::memcpy(&value, address, sizeof value);
    return value;
}

template <typename Value>
inline void write_unaligned(void* address, Value value)
{
    std::memcpy(address, &value, sizeof value);
}

inline float float_from_bits(uint32_t bits)
{
    return read_unaligned<float>(&bits);
}

inline uint32_t bits_of_float(float value)
{
    return read_unaligned<uint32_t>(&value);
}

struct Float32
{
    static constexpr int kBytes = 4;

    static float read(void const* address)
    {
        return read_unaligned<float>(address);
    }

    static void write(void* address, float value)
    {
        write_unaligned(address, value);
    }
};

struct BFloat16
{
    static constexpr int kBytes = 2;

    static float read(void const* address)
    {
        return float_from_bits(static_cast<uint32_t>(read_unaligned<uint16_t>(address)) << 16);
    }

    // To nearest, ties to even.
    static void write(void* address, float value)
    {
        uint32_t const bits = bits_of_float(value);
        bool const is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
        uint32_t const rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
        write_unaligned(address, static_cast<uint16_t>(is_nan ? (bits >> 16) | 0x40u : rounded >> 16));
    }
};

struct Float16
{
    static constexpr int kBytes = 2;

    static float read(void const* address)
    {
        uint32_t const half = read_unaligned<uint16_t>(address);
        uint32_t const sign = (half & 0x8000u) << 16;
        uint32_t const magnitude = half & 0x7fffu;
        if (magnitude >= 0x7c00u) // infinity and NaN
        {
            return float_from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
        }
        // The bits as a float of the same exponent field, 2^112 too small; the multiplication is exact, also of subnormals.
        float const scaled = float_from_bits(magnitude << 13) * float_from_bits(0x77800000u);
        return float_from_bits(sign | bits_of_float(scaled));
    }

    // To nearest, ties to even.
    static void write(void* address, float value)
    {
        uint32_t const bits = bits_of_float(value);
        uint32_t const sign = (bits >> 16) & 0x8000u;
        uint32_t const magnitude = bits & 0x7fffffffu;
        uint32_t half = 0;
        if (magnitude > 0x7f800000u)
        {
            half = 0x7e00u;
        }
        else if (magnitude >= 0x477ff000u) // rounds to 65536 or more
        {
            half = 0x7c00u;
        }
        else if (magnitude < 0x38800000u) // subnormal: adding 0.5 rounds at 2^-24
        {
            half = bits_of_float(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
        }
        else
        {
            half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
        }
        write_unaligned(address, static_cast<uint16_t>(sign | half));
    }
};

} // namespace
} // namespace q2export::cpu
