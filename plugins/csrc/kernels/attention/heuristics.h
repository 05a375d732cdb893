// Which kernel computes an attention, and how decode attention is cut into blocks: pure functions of the description
// and the GPU. docs/kernels.md has the reasoning.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "attention/prefill_heuristics.h"
#include "common/gpu.h"
#include "q2export/kernels.h"

namespace q2export
{

enum class AttentionKernel
{
    kReference, // any type and head_dim, slow
    kDecode, // few new tokens: the keys of a row are split among blocks
    kPrefill // many new tokens
};

constexpr int64_t kMaxDecodeTokens = 16;

inline AttentionKernel choose_attention_kernel(q2export_attention_desc const& desc)
{
    constexpr int64_t kMaxPositions = int64_t{1} << 30; // tiles are counted in 32 bits
    constexpr int32_t kMaxHeads = 1 << 14; // a dimension of the grid
    if (!prefill_serves(desc) || desc.capacity > kMaxPositions || desc.num_heads > kMaxHeads)
    {
        return AttentionKernel::kReference;
    }
    return desc.sequence <= kMaxDecodeTokens ? AttentionKernel::kDecode : AttentionKernel::kPrefill;
}

// ---------------------------------------------------------------------------------- shapes of decode blocks

constexpr int kDecodeStages = 3; // tiles of keys and values in shared memory: one is read while the others are filled
constexpr int kDecodeRows = 16; // query rows of a warp: one per head of the group and new token
constexpr int kSharedRowWarps = 4; // of blocks for more rows, whose warps share each tile and have 16 rows each
constexpr int kNarrowWarps = 4;
constexpr int kWideWarps = 8;

// Keys of one tile. A warp brings 4 KiB of keys and as much of values, whatever the head_dim.
constexpr int decode_tile_keys(int head_dim, int row_warps)
{
    return row_warps * 2048 / head_dim;
}

constexpr size_t decode_shared_bytes(int warps)
{
    return static_cast<size_t>(warps) * kDecodeStages * 2 * 4096;
}

// A part of a row's keys is at least 32 KiB of them and as much of values: less does not pay for its partial result.
constexpr int decode_part_keys(int head_dim)
{
    return 16384 / head_dim;
}

// ---------------------------------------------------------------------------------------------------- plans

constexpr int kMaxSplits = 256; // of one row
constexpr int64_t kMaxSplitBlocks = 1024; // of one call, where rows are split at all

struct DecodePlan
{
    int32_t warps; // of a block
    int32_t row_warps; // 1: each warp has keys of its own. Else all warps share them, and each has 16 query rows
    int32_t row_tiles; // blocks' worth of query rows of a KV head
    int32_t splits; // most parts the keys of a row are cut into; short rows have fewer, which the kernel decides
};

// Query rows of a KV head.
inline int64_t decode_rows(q2export_attention_desc const& desc)
{
    int64_t const tokens = desc.sequence < kMaxDecodeTokens ? desc.sequence : kMaxDecodeTokens;
    return tokens * (desc.num_heads / desc.num_kv_heads);
}

inline int32_t decode_row_warps(q2export_attention_desc const& desc)
{
    return decode_rows(desc) <= kDecodeRows ? 1 : kSharedRowWarps;
}

inline int64_t decode_row_tiles(q2export_attention_desc const& desc)
{
    return ceil_divide(decode_rows(desc), decode_row_warps(desc) * kDecodeRows);
}

// Query rows of one block.
inline int64_t decode_tile_rows(q2export_attention_desc const& desc)
{
    int64_t const rows = decode_rows(desc);
    int64_t const most = decode_row_warps(desc) * kDecodeRows;
    return rows < most ? rows : most;
}

// What can be computed on its own: a row tile of a KV head of a row of the batch.
inline int64_t decode_units(q2export_attention_desc const& desc)
{
    return desc.batch * desc.num_kv_heads * decode_row_tiles(desc);
}

// Parts for each of `units`, at most `most`, when `slots` blocks run at a time: the fewest that keep the slots nearly as
// busy as any number would. Blocks run in rounds, and the last round leaves slots empty.
inline int64_t decode_splits(int64_t units, int64_t slots, int64_t most)
{
    constexpr int64_t kMostRounds = 4; // the last of more matters little
    constexpr double kNearly = 7.0 / 8.0;
    int64_t const by_storage = kMaxSplitBlocks / units;
    most = most < kMaxSplits ? most : kMaxSplits;
    most = most < by_storage ? most : by_storage;
    if (16 * units <= slots)
    {
        int64_t const one_round = slots / units; // less than a sixteenth of the slots is empty
        return one_round < most ? one_round : (most > 1 ? most : 1);
    }
    auto const busy = [units, slots](int64_t splits) {
        int64_t const rounds = ceil_divide(units * splits, slots);
        return static_cast<double>(units * splits) / static_cast<double>(rounds * slots);
    };
    int64_t const by_rounds = kMostRounds * slots / units;
    most = most < by_rounds ? most : by_rounds;
    double best = busy(1);
    for (int64_t splits = 2; splits <= most; ++splits)
    {
        best = best < busy(splits) ? busy(splits) : best;
    }
    int64_t splits = 1;
    while (splits < most && busy(splits) < kNearly * best)
    {
        ++splits;
    }
    return splits;
}

// Blocks with `warps` warps that a GPU runs at a time.
inline int64_t decode_slots(Gpu const& gpu, int warps)
{
    constexpr int64_t kReserved = 1024; // bytes of each block that are CUDA's
    constexpr int64_t kRegisterWarps = 8; // that the registers of a multiprocessor allow: 255 for each thread
    int64_t const bytes = static_cast<int64_t>(decode_shared_bytes(warps)) + kReserved;
    int64_t const by_memory = gpu.shared_bytes_per_multiprocessor / bytes;
    int64_t const by_registers = kRegisterWarps / warps;
    int64_t const blocks = by_memory < by_registers ? by_memory : by_registers;
    return gpu.multiprocessors * (blocks > 1 ? blocks : 1);
}

inline DecodePlan plan_decode(q2export_attention_desc const& desc, Gpu const& gpu)
{
    int64_t const units = decode_units(desc);
    int64_t const window = desc.sliding_window > 0 ? desc.sliding_window + desc.sequence : desc.capacity;
    int64_t const keys = window < desc.capacity ? window : desc.capacity;
    int64_t const most = keys / decode_part_keys(desc.head_dim);
    int64_t const narrow = decode_splits(units, decode_slots(gpu, kNarrowWarps), most);
    DecodePlan plan{kNarrowWarps, decode_row_warps(desc), static_cast<int32_t>(decode_row_tiles(desc)),
        static_cast<int32_t>(narrow)};
    // One block of eight warps on a multiprocessor in place of two of four halves the partial results. It pays where one
    // round of such blocks leaves few multiprocessors idle.
    bool const fits = static_cast<size_t>(gpu.shared_bytes_per_block) >= decode_shared_bytes(kWideWarps);
    if (plan.row_warps == 1 && fits)
    {
        int64_t const slots = decode_slots(gpu, kWideWarps);
        int64_t const wide = decode_splits(units, slots, most);
        if (wide > 1 && units * wide <= slots && 8 * units * wide >= 7 * slots)
        {
            plan.warps = kWideWarps;
            plan.splits = static_cast<int32_t>(wide);
        }
    }
    return plan;
}

// ------------------------------------------------------------------------------------------------ workspace

// Most blocks that leave partial results, on any GPU: never falls when batch, sequence or capacity grows.
inline int64_t max_partial_blocks(q2export_attention_desc const& desc)
{
    int64_t const most = desc.capacity / decode_part_keys(desc.head_dim);
    if (most < 2)
    {
        return 0;
    }
    int64_t const blocks = decode_units(desc) * (most < kMaxSplits ? most : kMaxSplits);
    return blocks < kMaxSplitBlocks ? blocks : kMaxSplitBlocks;
}

} // namespace q2export
