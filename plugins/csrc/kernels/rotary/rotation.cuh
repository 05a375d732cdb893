// Rotary position embedding, half-split (Su et al. 2021; YaRN: Peng et al. 2023), of one pair of channels.
#pragma once

#include <cstdint>

#include "common/element.cuh"

namespace q2export
{

// Rotates channels i and i + head_dim / 2 of the head at x into the head at y; x may be y. Angles, cos and sin are
// float, as in the specification: position * inv_freq is rounded to float before it is reduced.
template <typename Element>
__device__ void rotate_pair(
    Element const* x, Element* y, int32_t i, int32_t head_dim, int64_t position, float const* inv_freq, float factor)
{
    int32_t const half = head_dim / 2;
    float const angle = static_cast<float>(position) * inv_freq[i];
    float const cosine = cosf(angle) * factor;
    float const sine = sinf(angle) * factor;
    float const first = load(x + i);
    float const second = load(x + i + half);
    store(y + i, first * cosine - second * sine);
    store(y + i + half, second * cosine + first * sine);
}

} // namespace q2export
