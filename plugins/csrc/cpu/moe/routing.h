// Which experts a token goes to.
#pragma once

#include <cstdint>

namespace q2export::cpu
{

// Chooses the `top_k` of `num_experts` experts with the largest logits; of equal ones the lower. Weights are the softmax
// over all logits, divided by the sum of the chosen ones where `normalize`. NaN logits give weights of NaN.
void route_token(float const* logits, int32_t num_experts, int32_t top_k, bool normalize, int32_t* experts, float* weights);

} // namespace q2export::cpu
