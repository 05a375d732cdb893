// Routing of Q2MoE: one warp per token.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/element.cuh"
#include "moe/arguments.h"

namespace q2export
{

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFU;

// A logit as an integer that orders as the logits do: all above 0, which stands for none; -0 and 0 alike; NaN highest.
__device__ inline uint32_t rank_key(float logit)
{
    if (logit != logit)
    {
        return UINT32_MAX;
    }
    uint32_t const bits = __float_as_uint(logit + 0.0F);
    return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

__device__ inline float logit_of(uint32_t key)
{
    return __uint_as_float((key & 0x80000000U) != 0 ? key & 0x7FFFFFFFU : ~key);
}

// The keys of one token's logits, spread over a warp: expert e belongs to lane e % 32. In registers where kPerLane of
// them suffice, else (0) read again each time.
template <int kPerLane, typename Element>
class LaneKeys
{
public:
    __device__ LaneKeys(Element const* logits, int32_t num_experts, int lane)
        : lane_(lane)
    {
#pragma unroll
        for (int i = 0; i < kPerLane; ++i)
        {
            int32_t const expert = i * kWarp + lane;
            keys_[i] = expert < num_experts ? rank_key(load(logits + expert)) : 0;
        }
    }

    // Calls body(expert, key) by rising expert.
    template <typename Body>
    __device__ void for_each(Body body) const
    {
#pragma unroll
        for (int i = 0; i < kPerLane; ++i)
        {
            body(i * kWarp + lane_, keys_[i]);
        }
    }

private:
    uint32_t keys_[kPerLane];
    int lane_;
};

template <typename Element>
class LaneKeys<0, Element>
{
public:
    __device__ LaneKeys(Element const* logits, int32_t num_experts, int lane)
        : logits_(logits)
        , num_experts_(num_experts)
        , lane_(lane)
    {
    }

    template <typename Body>
    __device__ void for_each(Body body) const
    {
        for (int32_t expert = lane_; expert < num_experts_; expert += kWarp)
        {
            body(expert, rank_key(load(logits_ + expert)));
        }
    }

private:
    Element const* logits_;
    int32_t num_experts_;
    int lane_;
};

struct Ranked
{
    uint32_t key;
    int32_t expert;
};

// The expert ranked after `last`: the highest key, the lowest index among equals. All lanes get it.
template <typename Keys>
__device__ inline Ranked next_expert(Keys const& keys, Ranked last)
{
    Ranked best{0, INT32_MAX};
    keys.for_each([&](int32_t expert, uint32_t key) {
        bool const is_after = key < last.key || (key == last.key && expert > last.expert);
        if (is_after && key > best.key)
        {
            best = {key, expert};
        }
    });
    uint32_t const key = __reduce_max_sync(kAllLanes, best.key);
    return {key, __reduce_min_sync(kAllLanes, best.key == key ? best.expert : INT32_MAX)};
}

// Softmax over all experts in float, and the top_k by logit, best first; called by a whole warp. A softmax over logits
// that are NaN, +inf or all -inf is NaN: so are the token's weights then, and what they multiply, but the experts
// chosen are valid.
template <int kPerLane, typename Element>
__device__ inline void route_token(
    q2export_moe_desc const& desc, Element const* logits, int lane, int32_t* chosen, float* weight)
{
    LaneKeys<kPerLane, Element> const keys(logits, desc.num_experts, lane);
    Ranked ranked{UINT32_MAX, -1};
    float maximum = 0.0F;
    float chosen_sum = 0.0F;
    for (int32_t i = 0; i < desc.top_k; ++i)
    {
        ranked = next_expert(keys, ranked);
        float const logit = logit_of(ranked.key);
        maximum = i == 0 ? logit : maximum;
        float const exponential = expf(logit - maximum);
        chosen_sum += exponential;
        if (lane == i % kWarp)
        {
            chosen[i] = ranked.expert;
            weight[i] = exponential;
        }
    }
    float sum = 0.0F;
    keys.for_each([&](int32_t, uint32_t key) { sum += key == 0 ? 0.0F : expf(logit_of(key) - maximum); });
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2)
    {
        sum += __shfl_xor_sync(kAllLanes, sum, distance);
    }
    float const divisor = desc.norm_topk_prob != 0 ? chosen_sum : sum;
    for (int32_t i = lane; i < desc.top_k; i += kWarp)
    {
        weight[i] /= divisor; // written by this lane
    }
}

} // namespace q2export
