// The grouped product: every expert's matrices times the tokens sent to it, one persistent kernel for all experts.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/launch.cuh"
#include "moe/loader.cuh"
#include "moe/multiply.cuh"
#include "moe/multiply_hopper.cuh"
#include "moe/store.cuh"

namespace q2export
{

// Multiplies a tile of 16-bit weights. The reader is not used by wgmma, which reads shared memory itself.
template <typename Element, int kTile, bool kGated>
__device__ inline void multiply_tile(Accumulators<Product<Element, kTile, kGated>>& accumulators,
    Reader<Product<Element, kTile, kGated>> const& reader, Loader<Product<Element, kTile, kGated>>& loader,
    Ring<Product<Element, kTile, kGated>>& ring, GroupedArguments const& arguments, Work const& work)
{
    constexpr int32_t kTokens = kMoeTiles[kTile].tokens;
    if constexpr (!kMoeTiles[kTile].is_hopper)
    {
        accumulators.clear();
        multiply_needed(accumulators, reader, loader, ring, arguments.depth, work.tokens);
    }
    else if (work.tokens > kTokens / 2)
    {
        multiply_by_warpgroups<kTokens>(accumulators, loader, ring, arguments.depth);
    }
    else
    {
        multiply_by_warpgroups<kTokens / 2>(accumulators, loader, ring, arguments.depth);
    }
}

// The tiles of one block: tile, tile + stride and so on before `end`; `token_tile` is that of the first.
template <typename Product>
__device__ inline void multiply_tiles(typename Product::Arguments const& arguments, TokenTile const& token_tile,
    int32_t weight_tiles, int32_t tile, int32_t end, int32_t stride)
{
    Ring<Product> ring{dynamic_shared()};
    typename Product::Loader loader(arguments, token_tile, weight_tiles, tile, end, stride);
#pragma unroll
    for (int stage = 0; stage < Product::kAhead; ++stage)
    {
        loader.template copy<1>(ring.base + stage * Product::kStageBytes, 0);
        loader.advance();
        copy_async_commit();
    }
    typename Product::Reader const reader;
    Accumulators<Product> accumulators;
    for (; tile < end; tile += stride)
    {
        Work const work
            = find_work(arguments.tiles[tile / weight_tiles], weight_tiles, Product::kShape.tokens, tile);
        multiply_tile(accumulators, reader, loader, ring, arguments, work);
        store_tile(accumulators, arguments, work);
    }
}

// Of `blocks`, the fewest that need no more rounds for `tiles`: all of them take as many tiles, or one less.
__host__ __device__ inline int32_t balanced_blocks(int32_t tiles, int32_t blocks)
{
    int32_t const rounds = (tiles + blocks - 1) / blocks;
    return rounds == 0 ? 0 : (tiles + rounds - 1) / rounds;
}

// kGated: outputs[position] = silu(gate x) * (up x), for x the token of the position's slot.
// Else:   outputs[slot] = down x, for x the position's row.
template <typename Product>
__global__ void __launch_bounds__(Product::kThreads)
    grouped_product_kernel(__grid_constant__ typename Product::Arguments const arguments)
{
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
    if constexpr (Product::kShape.is_hopper)
    {
        __trap(); // never launched there
    }
    else
#endif
    {
        wait_for_previous_kernel();
        allow_next_kernel();
        int32_t const weight_tiles = (arguments.rows + Product::kOutputs - 1) / Product::kOutputs;
        int32_t const first = static_cast<int32_t>(blockIdx.x);
        // Both loads at once: the list has room for as many tiles as the grid has blocks.
        TokenTile const token_tile = arguments.tiles[first / weight_tiles];
        int32_t const tiles = *arguments.tile_count * weight_tiles;
        int32_t const blocks = balanced_blocks(tiles, static_cast<int32_t>(gridDim.x));
        if (first < blocks)
        {
            multiply_tiles<Product>(arguments, token_tile, weight_tiles, first, tiles, blocks);
        }
    }
}

// Calls body(std::integral_constant<int, index>), for an index below kCount.
template <int kCount, int kIndex = 0, typename Body>
q2export_status with_index(int32_t index, Body body)
{
    if constexpr (kIndex + 1 < kCount)
    {
        if (index != kIndex)
        {
            return with_index<kCount, kIndex + 1>(index, body);
        }
    }
    return body(std::integral_constant<int, kIndex>{});
}

// Queues one product.
template <typename Product>
q2export_status launch_product(q2export_stream stream, typename Product::Arguments const& arguments, Gpu const& gpu,
    MoePlan const& plan, int64_t most_token_tiles)
{
    int64_t const weight_tiles = (arguments.rows + Product::kOutputs - 1) / Product::kOutputs;
    LaunchShape shape{grid_blocks(Product::kSharedBytes, gpu, most_token_tiles * weight_tiles)};
    shape.threads = Product::kThreads;
    shape.shared_bytes = Product::kSharedBytes;
    shape.overlaps_previous = plan.overlaps;
    return launch(stream, shape, grouped_product_kernel<Product>, arguments);
}

} // namespace q2export
