// Functions of one thread that CUDA has and C++ has not. Blocks and threads take turns only where they wait, so that
// an atomic is the plain operation.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "machine/races.h"

namespace host_cuda
{

template <typename To, typename From>
To bit_cast(From from)
{
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// A parameter that takes no part in finding out the template's argument, so that atomicAdd(float*, int) compiles.
template <typename Value>
struct Same
{
    using type = Value;
};

template <typename Value>
using same_t = typename Same<Value>::type;

} // namespace host_cuda

// The instructions of a function are not accesses of their own.
#define HOST_CUDA_UNSEEN __attribute__((noinline, no_sanitize("thread")))

#define HOST_CUDA_ATOMIC(name, expression)                                                                             \
    template <typename Value>                                                                                          \
    HOST_CUDA_UNSEEN Value name(Value* address, host_cuda::same_t<Value> value)                                        \
    {                                                                                                                  \
        host_cuda::record_access(                                                                                      \
            address, sizeof *address, host_cuda::Access::kAtomic, __builtin_return_address(0));                        \
        Value const old = *address;                                                                                    \
        *address = (expression);                                                                                       \
        return old;                                                                                                    \
    }

HOST_CUDA_ATOMIC(atomicAdd, old + value)
HOST_CUDA_ATOMIC(atomicSub, old - value)
HOST_CUDA_ATOMIC(atomicMax, old < value ? value : old)
HOST_CUDA_ATOMIC(atomicMin, value < old ? value : old)
HOST_CUDA_ATOMIC(atomicExch, value)
HOST_CUDA_ATOMIC(atomicOr, old | value)
HOST_CUDA_ATOMIC(atomicAnd, old & value)
HOST_CUDA_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
#undef HOST_CUDA_ATOMIC

template <typename Value>
HOST_CUDA_UNSEEN Value atomicCAS(Value* address, host_cuda::same_t<Value> compare, host_cuda::same_t<Value> value)
{
    host_cuda::record_access(address, sizeof *address, host_cuda::Access::kAtomic, __builtin_return_address(0));
    Value const old = *address;
    *address = old == compare ? value : old;
    return old;
}

inline void __threadfence()
{
    host_cuda::record_fence();
}

inline void __threadfence_block() {}

[[noreturn]] inline void __trap()
{
    std::abort();
}

// Loads and stores with a caching hint.
template <typename Value>
Value __ldg(Value const* address)
{
    return *address;
}

template <typename Value>
Value __ldcs(Value const* address)
{
    return *address;
}

template <typename Value>
Value __ldcg(Value const* address)
{
    return *address;
}

template <typename Value>
void __stcs(Value* address, host_cuda::same_t<Value> value)
{
    *address = value;
}

template <typename Value>
void __stcg(Value* address, host_cuda::same_t<Value> value)
{
    *address = value;
}

inline unsigned __float_as_uint(float value)
{
    return host_cuda::bit_cast<unsigned>(value);
}

inline int __float_as_int(float value)
{
    return host_cuda::bit_cast<int>(value);
}

inline float __uint_as_float(unsigned value)
{
    return host_cuda::bit_cast<float>(value);
}

inline float __int_as_float(int value)
{
    return host_cuda::bit_cast<float>(value);
}

inline int __popc(unsigned value)
{
    return __builtin_popcount(value);
}

inline int __ffs(int value)
{
    return __builtin_ffs(value);
}

inline int __clz(int value)
{
    return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value));
}

inline unsigned __umulhi(unsigned a, unsigned b)
{
    return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}

// Byte n of the result is byte selector[4n .. 4n + 2] of the eight bytes of b and a.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector)
{
    uint64_t const bytes = static_cast<uint64_t>(b) << 32 | a;
    unsigned result = 0;
    for (unsigned n = 0; n < 4; ++n)
    {
        result |= static_cast<unsigned>(bytes >> (selector >> (4 * n) & 7) * 8 & 0xFF) << (8 * n);
    }
    return result;
}

inline int __float2int_rn(float value)
{
    return static_cast<int>(std::nearbyint(value));
}

inline float __expf(float x)
{
    return std::exp(x);
}

inline float __exp2f(float x)
{
    return std::exp2(x);
}

inline float __logf(float x)
{
    return std::log(x);
}

inline float __log2f(float x)
{
    return std::log2(x);
}

inline float __sinf(float x)
{
    return std::sin(x);
}

inline float __cosf(float x)
{
    return std::cos(x);
}

inline float __fdividef(float a, float b)
{
    return a / b;
}

inline float __frcp_rn(float x)
{
    return 1.0F / x;
}

inline float __fmul_rn(float a, float b)
{
    return a * b;
}

inline float __fadd_rn(float a, float b)
{
    return a + b;
}

inline float __fmaf_rn(float a, float b, float c)
{
    return std::fma(a, b, c);
}

inline float __saturatef(float x)
{
    return x > 0.0F ? std::min(x, 1.0F) : 0.0F;
}

inline float rsqrtf(float x)
{
    return 1.0F / std::sqrt(x);
}

template <typename Value>
constexpr std::enable_if_t<std::is_arithmetic_v<Value>, Value> min(Value a, Value b)
{
    return b < a ? b : a;
}

template <typename Value>
constexpr std::enable_if_t<std::is_arithmetic_v<Value>, Value> max(Value a, Value b)
{
    return a < b ? b : a;
}
