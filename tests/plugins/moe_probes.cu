// What the tests of Q2MoE call: its plans, where things lie in shared memory, and the kernels with a tile of one's own.
#include "moe/fast.h"
#include "moe/grouped_product.cuh"
#include "moe/quantized_fast.h"
#include "moe/quantized_product.cuh"

using namespace q2export;

extern "C" q2export_status probe_moe(q2export_moe_desc const* desc, void const* hidden, void const* router_logits,
    void const* const* gate, void const* const* up, void const* const* down, void* output, int32_t tile,
    int32_t overlaps, void* workspace, q2export_stream stream)
{
    Gpu gpu{};
    Q2EXPORT_TRY(current_gpu(&gpu));
    MoeCall const call{{*desc, router_logits, stream}, hidden, gate, up, down, output};
    return run_moe(call, lay_out(*desc, workspace), gpu, {tile, overlaps != 0});
}

extern "C" q2export_status probe_quantized_moe(q2export_quantized_moe_desc const* desc, void const* hidden,
    void const* router_logits, void const* gate_up, void const* gate_up_scale, void const* down,
    void const* down_scale, void* output, int32_t tile, int32_t overlaps, void* workspace, q2export_stream stream)
{
    Gpu gpu{};
    Q2EXPORT_TRY(current_gpu(&gpu));
    QuantizedMoeCall const call{{desc->moe, router_logits, stream}, desc->bits, desc->block_size, hidden,
        static_cast<unsigned char const*>(gate_up), gate_up_scale, static_cast<unsigned char const*>(down), down_scale,
        output};
    return run_quantized_moe(call, lay_out(desc->moe, workspace), gpu, {tile, overlaps != 0});
}

extern "C" int32_t probe_choose_quantized(q2export_quantized_moe_desc const* desc, Gpu const* gpu)
{
    return plan_quantized_moe(*desc, *gpu).tile;
}

extern "C" MoeTile probe_quantized_tile(int32_t tile)
{
    return kQuantizedMoeTiles[tile];
}

extern "C" int32_t probe_quantized_shared_bytes(int32_t tile, int32_t bits)
{
    return shared_bytes(kQuantizedMoeTiles[tile], bits);
}

extern "C" int32_t probe_swizzled_codes(int32_t row, int32_t chunk)
{
    return swizzled_codes(row, chunk);
}

extern "C" int32_t probe_swizzled_tokens(int32_t row_bytes, int32_t row, int32_t chunk)
{
    return row_bytes == 256 ? swizzled_tokens<256>(row, chunk) : swizzled_tokens<128>(row, chunk);
}

extern "C" MoeTile probe_tile(int32_t tile)
{
    return kMoeTiles[tile];
}

extern "C" int32_t probe_choose(q2export_moe_desc const* desc, Gpu const* gpu)
{
    return plan_moe(*desc, *gpu).tile;
}

extern "C" int32_t probe_shared_bytes(int32_t tile)
{
    return shared_bytes(kMoeTiles[tile]);
}

extern "C" int64_t probe_grid_blocks(int32_t tile, Gpu const* gpu, int64_t most_tiles)
{
    return grid_blocks(shared_bytes(kMoeTiles[tile]), *gpu, most_tiles);
}

extern "C" int64_t probe_weight_tiles(int32_t tile, int32_t rows, int32_t matrices)
{
    return weight_tiles(kMoeTiles[tile], rows, matrices);
}

extern "C" int64_t probe_max_token_tiles(int64_t slots, int32_t num_experts, int32_t tokens)
{
    return max_token_tiles(slots, num_experts, tokens);
}

extern "C" void probe_chunks(int64_t num_tokens, int64_t (&result)[3])
{
    result[0] = chunk_tokens(num_tokens);
    result[1] = chunk_count(num_tokens);
    result[2] = max_chunk_count(num_tokens);
}

extern "C" int32_t probe_balanced_blocks(int32_t tiles, int32_t blocks)
{
    return balanced_blocks(tiles, blocks);
}

extern "C" void probe_find_work(
    TokenTile const* tiles, int32_t weight_tiles, int32_t tile_tokens, int32_t index, Work* work)
{
    *work = find_work(tiles[index / weight_tiles], weight_tiles, tile_tokens, index);
}

extern "C" int32_t probe_swizzled(int32_t row, int32_t chunk)
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

extern "C" int32_t probe_output_of(int32_t tile, int32_t row, int32_t is_gated)
{
    static_assert(kMoeTileCount == 6);
    constexpr int32_t (*kOutputs[])(int32_t, bool)
        = {output_of<0>, output_of<1>, output_of<2>, output_of<3>, output_of<4>, output_of<5>};
    return kOutputs[tile](row, is_gated != 0);
}
