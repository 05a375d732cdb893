// The exponential function of a vector.
#pragma once

namespace q2export::cpu
{
namespace
{

// exp(x) of x up to 88, to two units in the last place; zero below -87, where the result leaves the range of normal
// numbers. x = n ln 2 + r, |r| <= ln 2 / 2, and exp(r) by its Taylor series to the seventh power.
inline Simd::Vector exponential(Simd::Vector const& x)
{
    Simd::Vector const limit = Simd::broadcast(-87.0f);
    Simd::Vector const limited = Simd::maximum(x, limit);
    Simd::Vector const n = Simd::round(Simd::multiply(limited, Simd::broadcast(1.44269504f)));
    // ln 2 in two parts, the first of so few bits that its product with n is exact.
    Simd::Vector r = Simd::subtract_product(n, Simd::broadcast(0.693359375f), limited);
    r = Simd::subtract_product(n, Simd::broadcast(-2.12194440e-4f), r);
    constexpr float kInverseFactorials[]
        = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 1.0f / 2, 1.0f, 1.0f};
    Simd::Vector series = Simd::broadcast(kInverseFactorials[0]);
    for (int power = 1; power < 8; ++power)
    {
        series = Simd::fma(series, r, Simd::broadcast(kInverseFactorials[power]));
    }
    return Simd::where_at_least(x, limit, Simd::times_power_of_two(series, n));
}

} // namespace
} // namespace q2export::cpu
