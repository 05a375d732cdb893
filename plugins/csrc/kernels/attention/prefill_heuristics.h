// Which tiles the prefill attention uses, and in which order: pure functions of the description and the GPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/gpu.h"
#include "q2export/kernels.h"

namespace q2export
{

constexpr int kPrefillKeys = 64; // of one tile of keys or values
constexpr int kPrefillWarps = 4; // of one block of short or tall tiles

// How the rows of a block are shared out. A row is one query head of one token: the heads of a group are rows of the
// same tile, so that each key is read once for all of them.
//   kShort   64 rows, 16 a warp: for little work, or too little shared memory for two tall blocks.
//   kTall    128 rows, 32 a warp: each fragment of a key serves two tensor-core instructions, which halves the traffic
//            of shared memory.
//   kHopper  128 rows, 64 for each of two warpgroups: the instructions of sm_90a (prefill_hopper.cu).
enum class PrefillTile : int32_t
{
    kShort,
    kTall,
    kHopper
};

// Nobody has run PrefillTile::kHopper on a GPU. Until tests/gpu/test_prefill.py has passed on one, it is used
// where a plan asks for it and nowhere else.
constexpr bool kHopperTileIsTested = false;

constexpr int prefill_rows(PrefillTile tile)
{
    return tile == PrefillTile::kShort ? 64 : 128;
}

constexpr int kPrefillSlots = 3; // tiles of keys and values in shared memory: one is read, the others are being filled

// Bytes of `rows` rows of 16-bit elements.
constexpr size_t prefill_tile_bytes(int rows, int head_dim)
{
    return static_cast<size_t>(rows) * head_dim * 2;
}

// The query stays in registers, except that of tall tiles with 128 channels, for which there are too few.
constexpr bool prefill_shares_query(PrefillTile tile, int head_dim)
{
    return tile == PrefillTile::kTall && head_dim == 128;
}

constexpr size_t kPrefillRowsBytes = 192; // for where the tile's rows are, see TileRows

// Where in shared memory of short and tall tiles the ring of slots ends: a shared query, the ring, where the rows are.
constexpr size_t prefill_ring_end(PrefillTile tile, int head_dim)
{
    size_t const query = prefill_shares_query(tile, head_dim) ? prefill_tile_bytes(prefill_rows(tile), head_dim) : 0;
    return query + kPrefillSlots * prefill_tile_bytes(kPrefillKeys, head_dim);
}

constexpr size_t prefill_shared_bytes(PrefillTile tile, int head_dim)
{
    return prefill_ring_end(tile, head_dim) + kPrefillRowsBytes;
}

// Blocks that share a multiprocessor, one multiplying while the other exponentiates: the registers of the kernels are
// limited to that.
constexpr int kPrefillBlocks = 2;

// Whether the tensor-core kernels compute this attention. The maximum of a row is taken before the scale, which has to
// keep the order of the scores for that.
inline bool prefill_serves(q2export_attention_desc const& desc)
{
    bool const has_tiles = desc.head_dim == 64 || desc.head_dim == 128;
    bool const is_narrow = desc.dtype == Q2EXPORT_FLOAT16 || desc.dtype == Q2EXPORT_BFLOAT16;
    return has_tiles && is_narrow && desc.scale > 0.0F && desc.scale <= 1.0e30F;
}

struct PrefillPlan
{
    PrefillTile tile;
    int64_t row_tiles; // of one KV head of one row of the batch
    int64_t section; // (batch, kv_head) pairs whose blocks are queued together
    int64_t blocks;
};

inline int64_t ceil_divide(int64_t dividend, int64_t divisor)
{
    return (dividend + divisor - 1) / divisor;
}

inline int64_t prefill_row_tiles(q2export_attention_desc const& desc, PrefillTile tile)
{
    return ceil_divide(desc.sequence * (desc.num_heads / desc.num_kv_heads), prefill_rows(tile));
}

inline PrefillTile choose_prefill_tile(q2export_attention_desc const& desc, Gpu const& gpu)
{
    constexpr PrefillTile kTile = PrefillTile::kTall;
    constexpr int64_t kReserved = 1024; // by the driver, of each block
    int64_t const shared = static_cast<int64_t>(prefill_shared_bytes(kTile, desc.head_dim)) + kReserved;
    bool const fits = gpu.shared_bytes_per_multiprocessor >= kPrefillBlocks * shared;
    int64_t const blocks = desc.batch * desc.num_kv_heads * prefill_row_tiles(desc, kTile);
    if (!fits || blocks < gpu.multiprocessors)
    {
        return PrefillTile::kShort;
    }
    bool const has_hopper = kHopperTileIsTested && kHasSm90a && gpu.compute_capability == 90;
    return has_hopper ? PrefillTile::kHopper : kTile;
}

// Blocks start in the order of their index. Within a section the tiles with the most keys come first, so that the
// last blocks to run are short ones. A section's keys and values fit in half of L2, so that the blocks that run at
// one time find them there; but it has at least two blocks for each that can run, for else its long tiles would
// start late.
inline PrefillPlan plan_prefill(q2export_attention_desc const& desc, Gpu const& gpu, PrefillTile tile)
{
    PrefillPlan plan{};
    plan.tile = tile;
    int64_t const pairs = desc.batch * desc.num_kv_heads;
    plan.row_tiles = prefill_row_tiles(desc, tile);
    plan.blocks = pairs * plan.row_tiles;
    if (plan.blocks == 0)
    {
        return plan;
    }
    int64_t const pair_bytes = 2 * desc.capacity * desc.head_dim * 2;
    int64_t const resident = int64_t{gpu.multiprocessors} * kPrefillBlocks;
    int64_t const in_l2 = pair_bytes == 0 ? pairs : gpu.l2_bytes / 2 / pair_bytes;
    int64_t const least = ceil_divide(2 * resident, plan.row_tiles);
    int64_t const section = in_l2 > least ? in_l2 : least;
    plan.section = section < pairs ? section : pairs;
    return plan;
}

inline PrefillPlan plan_prefill(q2export_attention_desc const& desc, Gpu const& gpu)
{
    return plan_prefill(desc, gpu, choose_prefill_tile(desc, gpu));
}

} // namespace q2export
