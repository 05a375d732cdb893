// Operations of a warp. They take the place they are called from, for messages and to tell them apart.
#pragma once

#include <cstdint>
#include <type_traits>

#include "machine/block.h"

namespace host_cuda
{

// What a shuffle's lane gives and gets.
template <typename Value>
struct Shuffle
{
    static_assert(std::is_trivially_copyable_v<Value> && sizeof(Value) <= 8, "CUDA has no such shuffle");

    Value value;
    Value result;
    unsigned source; // lane
};

template <typename Value>
Value shuffle(Site const& site, unsigned mask, Value value, unsigned source)
{
    Shuffle<Value> argument{value, value, source};
    meet_warp(site, mask, &argument, [](Arguments const& arguments, unsigned lanes) {
        for (unsigned lane = 0; lane < kWarpLanes; ++lane)
        {
            if (arguments[lane] == nullptr)
            {
                continue;
            }
            auto* const to = static_cast<Shuffle<Value>*>(arguments[lane]);
            auto const* const from = static_cast<Shuffle<Value> const*>(arguments[to->source % kWarpLanes]);
            if (from == nullptr)
            {
                refuse("lane %u shuffles from lane %u, which is not in mask 0x%08x", lane, to->source, lanes);
            }
            to->result = from->value;
        }
    });
    return argument.result;
}

// First lane of this lane's segment.
inline unsigned segment(int width)
{
    return current_lane() & ~(static_cast<unsigned>(width) - 1);
}

// Values of the lanes of a mask, reduced to one.
template <typename Value, typename Reduce>
Value reduce(Site const& site, unsigned mask, Value value, Reduce)
{
    meet_warp(site, mask, &value, [](Arguments const& arguments, unsigned lanes) {
        auto const* const first = static_cast<Value const*>(arguments[__builtin_ctz(lanes)]);
        Value result = *first;
        for (void* const argument : arguments)
        {
            if (argument != nullptr && argument != first)
            {
                result = Reduce::apply(result, *static_cast<Value const*>(argument));
            }
        }
        for (void* const argument : arguments)
        {
            if (argument != nullptr)
            {
                *static_cast<Value*>(argument) = result;
            }
        }
    });
    return value;
}

struct Add
{
    template <typename Value>
    static Value apply(Value a, Value b)
    {
        return a + b;
    }
};

struct Maximum
{
    template <typename Value>
    static Value apply(Value a, Value b)
    {
        return a < b ? b : a;
    }
};

struct Minimum
{
    template <typename Value>
    static Value apply(Value a, Value b)
    {
        return b < a ? b : a;
    }
};

struct Or
{
    template <typename Value>
    static Value apply(Value a, Value b)
    {
        return a | b;
    }
};

} // namespace host_cuda

inline void __syncwarp(unsigned mask = host_cuda::kAllLanes, host_cuda::Site site = host_cuda::here("__syncwarp"))
{
    host_cuda::meet_at_warp_barrier(site, mask);
}

template <typename Value>
Value __shfl_sync(
    unsigned mask, Value value, int source, int width = 32, host_cuda::Site site = host_cuda::here("__shfl_sync"))
{
    unsigned const in_segment = static_cast<unsigned>(source) & (static_cast<unsigned>(width) - 1);
    return host_cuda::shuffle(site, mask, value, host_cuda::segment(width) + in_segment);
}

template <typename Value>
Value __shfl_xor_sync(unsigned mask, Value value, int lane_mask, int width = 32,
    host_cuda::Site site = host_cuda::here("__shfl_xor_sync"))
{
    unsigned const source = host_cuda::current_lane() ^ static_cast<unsigned>(lane_mask);
    bool const is_beyond = source >= host_cuda::segment(width) + static_cast<unsigned>(width);
    return host_cuda::shuffle(site, mask, value, is_beyond ? host_cuda::current_lane() : source);
}

template <typename Value>
Value __shfl_up_sync(unsigned mask, Value value, unsigned delta, int width = 32,
    host_cuda::Site site = host_cuda::here("__shfl_up_sync"))
{
    unsigned const lane = host_cuda::current_lane();
    bool const is_beyond = lane < host_cuda::segment(width) + delta;
    return host_cuda::shuffle(site, mask, value, is_beyond ? lane : lane - delta);
}

template <typename Value>
Value __shfl_down_sync(unsigned mask, Value value, unsigned delta, int width = 32,
    host_cuda::Site site = host_cuda::here("__shfl_down_sync"))
{
    unsigned const lane = host_cuda::current_lane();
    bool const is_beyond = lane + delta >= host_cuda::segment(width) + static_cast<unsigned>(width);
    return host_cuda::shuffle(site, mask, value, is_beyond ? lane : lane + delta);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, host_cuda::Site site = host_cuda::here("__ballot_sync"))
{
    unsigned const vote = predicate != 0 ? 1U << host_cuda::current_lane() : 0U;
    return host_cuda::reduce(site, mask, vote, host_cuda::Or{});
}

inline int __any_sync(unsigned mask, int predicate, host_cuda::Site site = host_cuda::here("__any_sync"))
{
    return __ballot_sync(mask, predicate, site) != 0 ? 1 : 0;
}

inline int __all_sync(unsigned mask, int predicate, host_cuda::Site site = host_cuda::here("__all_sync"))
{
    return __ballot_sync(mask, predicate, site) == mask ? 1 : 0;
}

// Lanes with the same value.
template <typename Value>
unsigned __match_any_sync(unsigned mask, Value value, host_cuda::Site site = host_cuda::here("__match_any_sync"))
{
    struct Match
    {
        Value value;
        unsigned lanes;
    } argument{value, 0};
    host_cuda::meet_warp(site, mask, &argument, [](host_cuda::Arguments const& arguments, unsigned) {
        for (void* const to : arguments)
        {
            for (unsigned lane = 0; to != nullptr && lane < host_cuda::kWarpLanes; ++lane)
            {
                bool const is_equal = arguments[lane] != nullptr
                    && static_cast<Match const*>(arguments[lane])->value == static_cast<Match const*>(to)->value;
                static_cast<Match*>(to)->lanes |= is_equal ? 1U << lane : 0U;
            }
        }
    });
    return argument.lanes;
}

// sm_80 has these for 32-bit integers only.
template <typename Value>
Value __reduce_add_sync(unsigned mask, Value value, host_cuda::Site site = host_cuda::here("__reduce_add_sync"))
{
    static_assert(std::is_integral_v<Value> && sizeof(Value) == 4);
    return host_cuda::reduce(site, mask, value, host_cuda::Add{});
}

template <typename Value>
Value __reduce_max_sync(unsigned mask, Value value, host_cuda::Site site = host_cuda::here("__reduce_max_sync"))
{
    static_assert(std::is_integral_v<Value> && sizeof(Value) == 4);
    return host_cuda::reduce(site, mask, value, host_cuda::Maximum{});
}

template <typename Value>
Value __reduce_min_sync(unsigned mask, Value value, host_cuda::Site site = host_cuda::here("__reduce_min_sync"))
{
    static_assert(std::is_integral_v<Value> && sizeof(Value) == 4);
    return host_cuda::reduce(site, mask, value, host_cuda::Minimum{});
}

inline void __syncthreads(host_cuda::Site site = host_cuda::here("__syncthreads"))
{
    host_cuda::meet_block(site);
}

inline int __syncthreads_count(int predicate, host_cuda::Site site = host_cuda::here("__syncthreads_count"))
{
    return static_cast<int>(host_cuda::meet_block(site, predicate != 0 ? 1 : 0));
}

inline int __syncthreads_or(int predicate, host_cuda::Site site = host_cuda::here("__syncthreads_or"))
{
    return host_cuda::meet_block(site, predicate != 0 ? 1 : 0) != 0 ? 1 : 0;
}

inline int __syncthreads_and(int predicate, host_cuda::Site site = host_cuda::here("__syncthreads_and"))
{
    return host_cuda::meet_block(site, predicate == 0 ? 1 : 0) == 0 ? 1 : 0;
}
