// cos and sin of the angles of rotary embeddings, for any position and without local memory.
#pragma once

#include <cmath>

#include <cuda_runtime.h>

namespace q2export
{

// cos(angle) as x and sin(angle) as y, each to 8e-8; NaN from 2^31 radians on.
//
// sinf() and cosf() reduce large angles (positions near 131,072) through an array in local memory. Here two
// multiplications in double leave a rest in -pi/4 .. pi/4 that is right to the last bit of a float, and two
// polynomials, minimax fits of sin(r) and cos(r) there, do what is left. --use_fast_math has no hold on any of it.
__device__ inline float2 cosine_and_sine(float angle)
{
    constexpr double kTwoOverPi = 0.63661977236758134308;
    constexpr double kHalfPi = 1.57079632679489661923;
    constexpr double kHalfPiRest = 6.12323399573676588613e-17; // of pi / 2, after the double above
    constexpr float kLimit = 2147483648.0F;
    if (!(fabsf(angle) < kLimit))
    {
        return make_float2(NAN, NAN);
    }
    double const wide = angle;
    double const turns = rint(wide * kTwoOverPi); // quarters of a turn
    float const rest = static_cast<float>(fma(-turns, kHalfPiRest, fma(-turns, kHalfPi, wide)));
    float const square = rest * rest;
    float sine = fmaf(square, fmaf(square, -1.951521805e-4F, 8.332160291e-3F), -1.666665460e-1F);
    sine = fmaf(rest * square, sine, rest);
    float cosine = fmaf(square, fmaf(square, 2.443308261e-5F, -1.388731562e-3F), 4.166664567e-2F);
    cosine = fmaf(square, fmaf(square, cosine, -0.5F), 1.0F);
    int const quadrant = static_cast<int>(turns) & 3;
    float const x = quadrant % 2 == 0 ? cosine : sine;
    float const y = quadrant % 2 == 0 ? sine : cosine;
    return make_float2(quadrant == 1 || quadrant == 2 ? -x : x, quadrant >= 2 ? -y : y);
}

} // namespace q2export
