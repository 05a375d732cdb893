#include "moe/routing.h"

#include <algorithm>
#include <cmath>

namespace q2export::cpu
{

void route_token(float const* logits, int32_t num_experts, int32_t top_k, bool normalize, int32_t* experts, float* weights)
{
    float const largest = *std::max_element(logits, logits + num_experts);
    float sum = 0.0f;
    for (int32_t expert = 0; expert < num_experts; ++expert)
    {
        sum += std::exp(logits[expert] - largest);
    }
    float chosen = 0.0f;
    for (int32_t slot = 0; slot < top_k; ++slot)
    {
        // By logit: two that differ may have one probability. Where some are NaN, still no expert twice.
        int32_t best = -1;
        for (int32_t expert = 0; expert < num_experts; ++expert)
        {
            bool const taken = std::find(experts, experts + slot, expert) != experts + slot;
            if (!taken && (best < 0 || logits[expert] > logits[best]))
            {
                best = expert;
            }
        }
        experts[slot] = best;
        weights[slot] = std::exp(logits[best] - largest) / sum;
        chosen += weights[slot];
    }
    for (int32_t slot = 0; normalize && slot < top_k; ++slot)
    {
        weights[slot] /= chosen;
    }
}

} // namespace q2export::cpu
