// SwiGLU, silu(gate) * up: what the instruction sets implement.
#pragma once

#include <cstdint>

namespace q2export::cpu
{

struct SwigluKernels
{
    // output = silu(gate) * up, element by element; output may be gate.
    void (*swiglu)(float const* gate, float const* up, float* output, int64_t count);
    // The same of `count` pairs of a gate and an up.
    void (*swiglu_pairs)(float const* pairs, float* output, int64_t count);
};

extern SwigluKernels const kSwigluPortable;
extern SwigluKernels const kSwigluAvx2;
extern SwigluKernels const kSwigluAvx512;

// Those of the selected instruction set.
SwigluKernels const& swiglu_kernels();

} // namespace q2export::cpu
