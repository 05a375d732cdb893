#include "exponential.h"

#include <cmath>
#include <cstdint>
#include <cstring>

namespace q2export::runtime
{
namespace
{

#include "generated/exponential.inc"

} // namespace

// The steps of runtime/exponential.py, one IEEE operation each: this is compiled with -ffp-contract=off.
double exponential(double x)
{
    if (x < kLowest)
    {
        return 0;
    }
    double const n = std::rint(x * kStepsPerUnit);
    double const r = (x - n * kStepHigh) - n * kStepLow;
    double p = r * kCoefficients[0];
    for (int i = 1; i < kDegree; ++i)
    {
        p = (p + kCoefficients[i]) * r;
    }
    auto const steps = static_cast<int64_t>(n);
    double const power = kPowers[steps & (kSteps - 1)];
    int64_t const bits = ((steps >> kStepBits) + kExponentBias) << kMantissaBits;
    double scale = 0;
    std::memcpy(&scale, &bits, sizeof(scale));
    return (p * power + power) * scale;
}

} // namespace q2export::runtime
