// __half on the host. The compiler's own type does the rounding: to nearest, ties to even.
#pragma once

struct __half
{
    _Float16 value;
};

struct alignas(4) __half2
{
    __half x, y;
};

inline float __half2float(__half half)
{
    return static_cast<float>(half.value);
}

inline __half __float2half_rn(float value)
{
    return {static_cast<_Float16>(value)};
}
