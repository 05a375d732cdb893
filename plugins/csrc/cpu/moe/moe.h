// Mixture of experts: what the instruction sets implement.
#pragma once

#include <cstdint>

namespace q2export::cpu
{

struct MoeKernels
{
    // gate = silu(gate) * up, element by element.
    void (*swiglu)(float* gate, float const* up, int64_t count);
};

extern MoeKernels const kMoePortable;
extern MoeKernels const kMoeAvx2;
extern MoeKernels const kMoeAvx512;

} // namespace q2export::cpu
