// SwiGLU, for the vectors of one instruction set; included by one source per set.
#pragma once

#include <algorithm>

#include "simd/exponential.h"
#include "swiglu/swiglu.h"

namespace q2export::cpu
{
namespace
{

inline Simd::Vector swiglu_vector(Simd::Vector const& gate, Simd::Vector const& up)
{
    // exp(88) is the largest power that a float holds. A gate below -88 is taken for -88, whose silu is -5e-37; of a NaN
    // the maximum is its second argument.
    Simd::Vector const limited = Simd::maximum(Simd::broadcast(-88.0f), gate);
    Simd::Vector const denominator
        = Simd::add(Simd::broadcast(1.0f), exponential(Simd::subtract(Simd::zero(), limited)));
    return Simd::multiply(Simd::divide(limited, denominator), up);
}

void swiglu(float const* gate, float const* up, float* output, int64_t count)
{
    for (int64_t i = 0; i < count; i += Simd::kWidth)
    {
        int const lanes = static_cast<int>(std::min<int64_t>(Simd::kWidth, count - i));
        bool const whole = lanes == Simd::kWidth;
        Simd::Vector const a = whole ? Simd::load(gate + i) : Simd::load_first(gate + i, lanes);
        Simd::Vector const b = whole ? Simd::load(up + i) : Simd::load_first(up + i, lanes);
        Simd::store_first(output + i, swiglu_vector(a, b), lanes);
    }
}

void swiglu_pairs(float const* pairs, float* output, int64_t count)
{
    constexpr int64_t kRun = 64;
    float up[kRun];
    for (int64_t start = 0; start < count; start += kRun)
    {
        int64_t const length = std::min(kRun, count - start);
        for (int64_t i = 0; i < length; ++i)
        {
            output[start + i] = pairs[2 * (start + i)];
            up[i] = pairs[2 * (start + i) + 1];
        }
        swiglu(output + start, up, output + start, length);
    }
}

constexpr SwigluKernels kKernels{swiglu, swiglu_pairs};

} // namespace
} // namespace q2export::cpu
