// What the tests want to know of the plans of plugins/csrc/kernels/moe.
#include "moe/heuristics.h"
#include "moe/product.cuh"
#include "moe/ring.cuh"
#include "moe/work.cuh"

using namespace q2export;

extern "C" int32_t plan_tile_count()
{
    return kMoeTileCount;
}

extern "C" MoeTile plan_tile(int32_t tile)
{
    return kMoeTiles[tile];
}

extern "C" int32_t plan_choose(q2export_moe_desc const* desc, Gpu const* gpu)
{
    return choose_moe_tile(*desc, *gpu);
}

extern "C" int32_t plan_shared_bytes(int32_t tile)
{
    return shared_bytes(kMoeTiles[tile]);
}

extern "C" int64_t plan_grid_blocks(int32_t tile, Gpu const* gpu, int64_t most_tiles)
{
    return grid_blocks(kMoeTiles[tile], *gpu, most_tiles);
}

extern "C" int64_t plan_weight_tiles(int32_t tile, int32_t rows, int32_t matrices)
{
    return weight_tiles(kMoeTiles[tile], rows, matrices);
}

extern "C" int64_t plan_max_token_tiles(int64_t slots, int32_t num_experts, int32_t tokens)
{
    return max_token_tiles(slots, num_experts, tokens);
}

extern "C" void plan_chunks(int64_t num_tokens, int64_t (&result)[3])
{
    result[0] = chunk_tokens(num_tokens);
    result[1] = chunk_count(num_tokens);
    result[2] = max_chunk_count(num_tokens);
}

extern "C" int32_t plan_balanced_blocks(int32_t tiles, int32_t blocks)
{
    return balanced_blocks(tiles, blocks);
}

extern "C" void plan_find_work(
    TokenTile const* tiles, int32_t weight_tiles, int32_t tile_tokens, int32_t index, Work* work)
{
    *work = find_work(tiles[index / weight_tiles], weight_tiles, tile_tokens, index);
}

extern "C" int32_t plan_swizzled(int32_t row, int32_t chunk)
{
    return swizzled(row, chunk);
}

namespace
{

template <int kTile>
int32_t output_of(int32_t row, bool is_gated)
{
    return is_gated ? Product<__half, kTile, true>::output_of(row) : Product<__half, kTile, false>::output_of(row);
}

} // namespace

extern "C" int32_t plan_output_of(int32_t tile, int32_t row, int32_t is_gated)
{
    static_assert(kMoeTileCount == 5);
    constexpr int32_t (*kOutputs[])(int32_t, bool) = {output_of<0>, output_of<1>, output_of<2>, output_of<3>, output_of<4>};
    return kOutputs[tile](row, is_gated != 0);
}
