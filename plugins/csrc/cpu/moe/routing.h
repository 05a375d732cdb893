// Which experts a token goes to.
#pragma once

#include <cstdint>

namespace q2export::cpu
{

// Chooses `top_k` of `num_experts` experts by the softmax of their logits; of equal ones the lower. `probabilities` is
// memory of num_experts floats.
void route_token(float const* logits, int32_t num_experts, int32_t top_k, bool normalize, float* probabilities,
    int32_t* experts, float* weights);

} // namespace q2export::cpu
