// The grouped product: every expert's matrices times the tokens sent to it, one persistent kernel for all experts.
#pragma once

#include <cstdint>

#include "common/launch.cuh"
#include "moe/multiply.cuh"
#include "moe/ring.cuh"
#include "moe/store.cuh"

namespace q2export
{

// kGated: outputs[position] = silu(gate x) * (up x), for x the token of the position's slot.
// Else:   outputs[slot] = down x, for x the position's row.
template <typename Product>
__global__ void __launch_bounds__(Product::kThreads)
    grouped_product_kernel(__grid_constant__ ProductArguments const arguments)
{
    int32_t const weight_tiles = (arguments.rows + Product::kOutputs - 1) / Product::kOutputs;
    int32_t const first = static_cast<int32_t>(blockIdx.x);
    // Both loads at once: the list has room for as many tiles as the grid has blocks.
    TokenTile const token_tile = arguments.tiles[first / weight_tiles];
    int32_t const tiles = *arguments.tile_count * weight_tiles;
    int32_t const blocks = balanced_blocks(tiles, static_cast<int32_t>(gridDim.x));
    if (first >= blocks)
    {
        return;
    }
    Ring<Product> ring{dynamic_shared()};
    Loader<Product> loader(arguments, token_tile, weight_tiles, first, tiles, blocks);
#pragma unroll
    for (int stage = 0; stage + 1 < Product::kStages; ++stage)
    {
        loader.template copy<1>(ring.base + stage * Product::kStageBytes, 0);
        loader.advance();
        copy_async_commit();
    }
    Reader<Product> const reader;
    Accumulators<Product> accumulators;
    for (int32_t tile = first; tile < tiles; tile += blocks)
    {
        Work const work
            = find_work(arguments.tiles[tile / weight_tiles], weight_tiles, Product::kShape.tokens, tile);
        accumulators.clear();
        multiply_tile(accumulators, reader, loader, ring, arguments.depth, work.tokens);
        store_tile(accumulators, arguments, work);
    }
}

// Queues one product.
template <typename Product>
q2export_status launch_product(
    q2export_stream stream, ProductArguments const& arguments, Gpu const& gpu, int64_t most_token_tiles)
{
    int64_t const most_tiles = most_token_tiles * weight_tiles(Product::kShape, arguments.rows, Product::kGated ? 2 : 1);
    LaunchShape shape{grid_blocks(Product::kShape, gpu, most_tiles)};
    shape.threads = Product::kThreads;
    shape.shared_bytes = shared_bytes(Product::kShape);
    return launch(stream, shape, grouped_product_kernel<Product>, arguments);
}

} // namespace q2export
