// Routing of Q2MoE, reference: one thread per token.
#pragma once

#include <cmath>

#include "common/element.cuh"
#include "common/launch.cuh"

namespace q2export
{

// The expert ranked after (logit, expert): smaller logit, or the same and a higher index. -1 if there is none, which
// happens with NaN logits only.
template <typename Element>
__device__ int32_t next_expert(Element const* logits, int32_t num_experts, float logit, int32_t expert)
{
    int32_t best = -1;
    for (int32_t e = 0; e < num_experts; ++e)
    {
        float const candidate = load(logits + e);
        bool const is_after = candidate < logit || (candidate == logit && e > expert);
        if (is_after && (best < 0 || candidate > load(logits + best)))
        {
            best = e;
        }
    }
    return best;
}

// Softmax over all experts in float, then the top_k by logit. Where a logit is NaN the weights are NaN too, as any
// softmax would have it, and so is the token's output.
template <typename Element>
__global__ void route_kernel(q2export_moe_desc desc, Element const* router_logits, int32_t* chosen, float* weight)
{
    int64_t const token = element_index();
    if (token >= desc.num_tokens)
    {
        return;
    }
    Element const* const logits = router_logits + token * desc.num_experts;
    int32_t* const token_chosen = chosen + token * desc.top_k;
    float* const token_weight = weight + token * desc.top_k;
    float maximum = -INFINITY;
    for (int32_t e = 0; e < desc.num_experts; ++e)
    {
        maximum = fmaxf(maximum, load(logits + e));
    }
    float normaliser = 0.0F;
    for (int32_t e = 0; e < desc.num_experts; ++e)
    {
        normaliser += expf(load(logits + e) - maximum);
    }
    float logit = INFINITY;
    int32_t expert = -1;
    float chosen_sum = 0.0F;
    for (int32_t slot = 0; slot < desc.top_k; ++slot)
    {
        expert = next_expert(logits, desc.num_experts, logit, expert);
        if (expert < 0)
        {
            expert = 0;
            normaliser = NAN;
        }
        logit = load(logits + expert);
        float const probability = expf(logit - maximum) / normaliser;
        token_chosen[slot] = expert;
        token_weight[slot] = probability;
        chosen_sum += probability;
    }
    for (int32_t slot = 0; desc.norm_topk_prob != 0 && slot < desc.top_k; ++slot)
    {
        token_weight[slot] /= chosen_sum;
    }
}

} // namespace q2export
