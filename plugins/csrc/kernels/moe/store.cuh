// The end of a tile of the grouped product: SwiGLU where it is gated, rounding, and the way to global memory.
#pragma once

#include <cstdint>

#include "common/ptx.cuh"
#include "moe/product.cuh"
#include "moe/ring.cuh"
#include "moe/work.cuh"

namespace q2export
{

// silu(gate) * up
__device__ inline float swiglu(float gate, float up)
{
    constexpr float kLog2E = 1.44269504F;
    return __fdividef(gate, 1.0F + exp2_fast(-kLog2E * gate)) * up;
}

// The results of block `block` for two neighbouring tokens, rounded once and packed.
template <typename Product>
__device__ inline uint32_t rounded(Accumulators<Product> const& accumulators, int block, int tokens)
{
    using Element = typename Product::Element;
    if constexpr (Product::kGated)
    {
        float const(&values)[4] = accumulators.values[block][tokens];
        return pack2<Element>(swiglu(values[0], values[2]), swiglu(values[1], values[3]));
    }
    else
    {
        float const(&values)[4] = accumulators.values[block / 2][tokens];
        return pack2<Element>(values[block % 2 * 2], values[block % 2 * 2 + 1]);
    }
}

// kVector blocks of outputs of one token, side by side: 4, 8 or 16 bytes.
template <int kVector>
struct alignas(4 * kVector) Vector
{
    uint32_t parts[kVector];
};

// Writes a tile's results. In the accumulators a lane has one output for two tokens; transposed, each lane has two
// outputs of one token for every block of eight, which Product::output_of has made neighbours.
template <typename Product>
__device__ inline void store_tile(
    Accumulators<Product> const& accumulators, GroupedArguments const& arguments, Work const& work)
{
    constexpr int kVector = Product::kVector;
    int const lane = threadIdx.x % 32;
    int const warp = threadIdx.x / 32;
    int32_t const warp_output = work.weight_tile * Product::kOutputs
        + warp % Product::kShape.weight_warps * Product::kWarpOutputs + lane % 4 * 2 * kVector;
    auto* const outputs = static_cast<typename Product::Element*>(arguments.outputs);
#pragma unroll
    for (int j = 0; j < 2 * Product::kTokenPairs; ++j)
    {
        int const pair = j / 2 * Product::kShape.token_warps + warp / Product::kShape.weight_warps;
        int const token = pair * 16 + j % 2 * 8 + lane / 4;
        bool const is_token = token < work.tokens;
        int32_t const position = work.first_position + token;
        int64_t const row = Product::kGated || !is_token ? position : arguments.sorted[position];
#pragma unroll
        for (int i = 0; i < Product::kBlocks / kVector; ++i)
        {
            Vector<kVector> vector;
#pragma unroll
            for (int k = 0; k < kVector; ++k)
            {
                vector.parts[k] = transpose_matrix(rounded(accumulators, i * kVector + k, j));
            }
            int32_t const output = warp_output + i * kVector * 8;
            if (is_token && output < arguments.rows)
            {
                *reinterpret_cast<Vector<kVector>*>(outputs + row * arguments.rows + output) = vector;
            }
        }
    }
}

} // namespace q2export
