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

    // The sums of four vectors' elements, each in the same order.
    static void sum4(Vector const (&v)[4], float (&sums)[4])
    {
        for (int i = 0; i < 4; ++i)
        {
            float const* const x = v[i].lanes;
            sums[i] = ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
        }
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
