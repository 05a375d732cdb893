// Vectors of 8 32-bit integers, or of 32 bytes, in plain C++: see simd/portable.h. What the functions do is said in
// integers_avx512.h.
#pragma once

#include <algorithm>
#include <utility>

#include "simd/portable.h"

namespace q2export::cpu
{
namespace
{

struct Integers
{
    struct Vector
    {
        int32_t lanes[Simd::kWidth];
    };

    static constexpr int kPanelRows = 4;

    static Vector zero()
    {
        return Vector{};
    }

    static Vector load(void const* source)
    {
        Vector result;
        std::memcpy(result.lanes, source, sizeof result.lanes);
        return result;
    }

    static void store(void* target, Vector const& value)
    {
        std::memcpy(target, value.lanes, sizeof value.lanes);
    }

    static Vector broadcast(void const* source)
    {
        int32_t const value = read_unaligned<int32_t>(source);
        return make([=](int) { return value; });
    }

    static Vector from_floats(Simd::Vector const& value)
    {
        return load(value.lanes);
    }

    static Simd::Vector to_floats(Vector const& value)
    {
        Simd::Vector result;
        for (int lane = 0; lane < Simd::kWidth; ++lane)
        {
            result.lanes[lane] = static_cast<float>(value.lanes[lane]);
        }
        return result;
    }

    static Vector low_halves(Vector const& both)
    {
        return make([&](int lane) { return both.lanes[lane] & 0x0f0f0f0f; });
    }

    static Vector high_halves(Vector const& both)
    {
        return make([&](int lane) { return (both.lanes[lane] >> 4) & 0x0f0f0f0f; });
    }

    template <int kBits>
    static Vector dot(Vector const& codes, Vector const& values, Vector const& sum)
    {
        unsigned char code[4 * Simd::kWidth];
        int8_t value[4 * Simd::kWidth];
        store(code, codes);
        store(value, values);
        return make([&](int lane) {
            int32_t result = sum.lanes[lane];
            for (int i = 4 * lane; i < 4 * lane + 4; ++i)
            {
                result += code[i] * value[i];
            }
            return result;
        });
    }

    static Vector add_quads(Vector const (&v)[4])
    {
        return make([&](int lane) {
            int32_t const* const quad = v[lane % 4].lanes + lane / 4 * 4;
            return quad[0] + quad[1] + quad[2] + quad[3];
        });
    }

    static Vector fold(Vector const& a, Vector const& b)
    {
        return make([&](int lane) {
            int32_t const* const two = (lane < 4 ? a : b).lanes + lane % 4;
            return two[0] + two[4];
        });
    }

    static void transpose(Vector (&v)[Simd::kWidth])
    {
        for (int row = 0; row < Simd::kWidth; ++row)
        {
            for (int column = 0; column < row; ++column)
            {
                std::swap(v[row].lanes[column], v[column].lanes[row]);
            }
        }
    }

    static void load_quads(Bytes rows, int64_t stride, Simd::Vector (&quads)[2])
    {
        for (int i = 0; i < 16; ++i)
        {
            quads[i / 8].lanes[i % 8] = Float16::read(rows + i % 4 * stride + i / 4 * Float16::kBytes);
        }
    }

    static void sum_blocks(Simd::Vector const (&quads)[2], float (&sums)[4])
    {
        float const* const first = quads[0].lanes;
        float const* const last = quads[1].lanes;
        for (int i = 0; i < 4; ++i)
        {
            sums[i] = (first[i] + last[i]) + (first[4 + i] + last[4 + i]);
        }
    }

    template <int kBits>
    static Simd::Vector codes_to_floats(Bytes source)
    {
        Simd::Vector result;
        for (int i = 0; i < Simd::kWidth; ++i)
        {
            int const code = kBits == 8 ? source[i] : (source[i / 2] >> (i % 2 * 4)) & 15;
            result.lanes[i] = static_cast<float>(code);
        }
        return result;
    }

    static float largest_magnitude(float const* source, int64_t count)
    {
        uint32_t largest = 0;
        for (int64_t i = 0; i < count; ++i)
        {
            largest = std::max(largest, bits_of_float(source[i]) & 0x7fffffffu);
        }
        return float_from_bits(largest);
    }

    static Vector store_rounded(int8_t* target, Simd::Vector const& value)
    {
        constexpr float kRound = 12582912.0f; // 1.5 * 2^23: of a sum with it no fraction is left
        return make([&](int lane) {
            float const rounded = value.lanes[lane] + kRound - kRound;
            target[lane] = static_cast<int8_t>(rounded >= -127.0f ? std::min(rounded, 127.0f) : -127.0f);
            return static_cast<int32_t>(target[lane]);
        });
    }

    static Vector add(Vector const& a, Vector const& b)
    {
        return make([&](int lane) { return a.lanes[lane] + b.lanes[lane]; });
    }

    static int32_t sum(Vector const& value)
    {
        int32_t result = 0;
        for (int32_t const lane : value.lanes)
        {
            result += lane;
        }
        return result;
    }

private:
    template <typename Lane>
    static Vector make(Lane const& lane_value)
    {
        Vector result;
        for (int lane = 0; lane < Simd::kWidth; ++lane)
        {
            result.lanes[lane] = lane_value(lane);
        }
        return result;
    }
};

} // namespace
} // namespace q2export::cpu
