// Vectors of 8 floats as plain loops, which compilers turn into whatever vectors the machine has (NEON on aarch64).
#pragma once

#include "common/element.h"

namespace q2export::cpu
{
namespace
{

struct Simd
{
    static constexpr int kWidth = 8;
    static constexpr int kTileRows = 2; // of a matmul's register tile, by four columns

    struct Vector
    {
        float lanes[kWidth];
    };

    static Vector zero()
    {
        return broadcast(0.0f);
    }

    static Vector broadcast(float value)
    {
        return make([value](int) { return value; });
    }

    static Vector load(float const* source)
    {
        return make([source](int lane) { return source[lane]; });
    }

    static Vector load_first(float const* source, int count)
    {
        return make([=](int lane) { return lane < count ? source[lane] : 0.0f; });
    }

    template <typename Element>
    static Vector widen(Element, Bytes source)
    {
        return make([source](int lane) { return Element::read(source + lane * Element::kBytes); });
    }

    template <typename Element>
    static Vector widen_first(Element, Bytes source, int count)
    {
        return make([=](int lane) { return lane < count ? Element::read(source + lane * Element::kBytes) : 0.0f; });
    }

    static void store(float* target, Vector const& value)
    {
        store_first(target, value, kWidth);
    }

    static void store_first(float* target, Vector const& value, int count)
    {
        for (int lane = 0; lane < count; ++lane)
        {
            target[lane] = value.lanes[lane];
        }
    }

    // Rounds twice where the machine does not multiply and add in one instruction.
    static Vector fma(Vector const& a, Vector const& b, Vector const& sum)
    {
#if defined(__FP_FAST_FMAF)
        return make([&](int lane) { return __builtin_fmaf(a.lanes[lane], b.lanes[lane], sum.lanes[lane]); });
#else
        return make([&](int lane) { return a.lanes[lane] * b.lanes[lane] + sum.lanes[lane]; });
#endif
    }

    static Vector multiply(Vector const& a, Vector const& b)
    {
        return make([&](int lane) { return a.lanes[lane] * b.lanes[lane]; });
    }

    static Vector subtract_product(Vector const& a, Vector const& b, Vector const& from)
    {
        return make([&](int lane) { return from.lanes[lane] - a.lanes[lane] * b.lanes[lane]; });
    }

    static Vector add(Vector const& a, Vector const& b)
    {
        return make([&](int lane) { return a.lanes[lane] + b.lanes[lane]; });
    }

    static Vector subtract(Vector const& a, Vector const& b)
    {
        return make([&](int lane) { return a.lanes[lane] - b.lanes[lane]; });
    }

    static Vector maximum(Vector const& a, Vector const& b)
    {
        return make([&](int lane) { return a.lanes[lane] > b.lanes[lane] ? a.lanes[lane] : b.lanes[lane]; });
    }

    static Vector divide(Vector const& a, Vector const& b)
    {
        return make([&](int lane) { return a.lanes[lane] / b.lanes[lane]; });
    }

    // Of magnitudes below 2^22.
    static Vector round(Vector const& value)
    {
        return make([&](int lane) { return value.lanes[lane] + 12582912.0f - 12582912.0f; });
    }

    // value * 2^power, of a whole power that a float's exponent holds.
    static Vector times_power_of_two(Vector const& value, Vector const& power)
    {
        return make([&](int lane) {
            uint32_t const exponent = static_cast<uint32_t>(static_cast<int32_t>(power.lanes[lane]) + 127);
            return value.lanes[lane] * float_from_bits(exponent << 23);
        });
    }

    // value where x >= limit, else zero.
    static Vector where_at_least(Vector const& x, Vector const& limit, Vector const& value)
    {
        return make([&](int lane) { return x.lanes[lane] >= limit.lanes[lane] ? value.lanes[lane] : 0.0f; });
    }

    // Four floats.
    struct Four
    {
        float lanes[4];
    };

    static Four load4(float const* source)
    {
        return read_unaligned<Four>(source);
    }

    static void store4(float* target, Four const& value)
    {
        write_unaligned(target, value);
    }

    static Four add4(Four const& a, Four const& b)
    {
        Four sum;
        for (int i = 0; i < 4; ++i)
        {
            sum.lanes[i] = a.lanes[i] + b.lanes[i];
        }
        return sum;
    }

    // The sums of four vectors' elements, each in the same order.
    static Four sum4(Vector const (&v)[4])
    {
        Four sums;
        for (int i = 0; i < 4; ++i)
        {
            float const* const x = v[i].lanes;
            sums.lanes[i] = ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
        }
        return sums;
    }

    static void sum4(Vector const (&v)[4], float (&sums)[4])
    {
        store4(sums, sum4(v));
    }

private:
    template <typename Lane>
    static Vector make(Lane const& lane_value)
    {
        Vector result;
        for (int lane = 0; lane < kWidth; ++lane)
        {
            result.lanes[lane] = lane_value(lane);
        }
        return result;
    }
};

} // namespace
} // namespace q2export::cpu
