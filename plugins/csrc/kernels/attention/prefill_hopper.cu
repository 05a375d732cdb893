// Prefill attention for Hopper: two warpgroups of 64 query rows each, 128 keys a step. In a step a warpgroup starts the
// scores of one tile of keys and the output of the tile before it; it takes exponentials while the second product runs.
#include "attention/prefill_hopper.cuh"

#include "attention/prefill_hopper_tile.cuh"
#include "attention/prefill_output.cuh"
#include "attention/softmax.cuh"
#include "common/launch.cuh"

namespace q2export
{
namespace
{

// Offsets in shared memory: the query, two tiles of keys, two of values, where the rows are.
template <int kHeadDim>
constexpr int kBytes = kTileBytes<kHeadDim, kHopperKeys>;
template <int kHeadDim>
constexpr int kKeysAt = kBytes<kHeadDim>;
template <int kHeadDim>
constexpr int kValuesAt = 3 * kBytes<kHeadDim>;
template <int kHeadDim>
constexpr int kRowsAt = 5 * kBytes<kHeadDim>;

template <typename Element, int kHeadDim>
__device__ inline void copy_query(PrefillArguments<Element> const& arguments, TileRows const& rows)
{
    constexpr int kChunks = kHeadDim / kChunkElements;
    int const chunk = static_cast<int>(threadIdx.x) % kChunks;
#pragma unroll 4
    for (int row = static_cast<int>(threadIdx.x) / kChunks; row < kHopperRows; row += kHopperThreads / kChunks)
    {
        copy_async_16(dynamic_shared() + HopperTile<kHeadDim>::offset(row, chunk),
            arguments.query + rows.offset(arguments.desc, row) + chunk * kChunkElements, !rows.is_padding(row));
    }
}

template <typename Element, int kHeadDim>
__device__ inline void attend_rows(PrefillArguments<Element> const& arguments)
{
    q2export_attention_desc const& desc = arguments.desc;
    PrefillBlock const block = locate_block(arguments, blockIdx.x);
    TileRows& rows = *reinterpret_cast<TileRows*>(dynamic_shared() + kRowsAt<kHeadDim>);
    find_rows(
        rows, desc, block, row_lengths(desc, arguments.past_lengths, arguments.query_lengths, block.b), kHopperRows);
    __syncthreads();
    if (rows.is_padding(0))
    {
        write_rows<Element, kHeadDim, kFragmentRows>(arguments, rows);
        return;
    }

    int32_t const begin = rows.begin;
    int32_t const end = rows.end;
    int32_t const tiles = (end - begin - 1) / kHopperKeys + 1;
    int64_t const cached = cache_offset(desc, block.b, block.kv_head, begin);
    uint32_t const shared = shared_address(dynamic_shared());
    uint32_t const warpgroup = threadIdx.x / kWarpgroupThreads;
    // Contiguous along the channels: rows eight apart are `stride` apart.
    uint64_t const query = matrix_descriptor(shared + warpgroup * 8 * kEightRows, 16, kEightRows);
    uint64_t const keys = matrix_descriptor(shared + kKeysAt<kHeadDim>, 16, kEightRows);
    // The same tile, contiguous along the columns of the product: blocks of 64 channels are `leading` apart.
    uint64_t const values = matrix_descriptor(shared + kValuesAt<kHeadDim>, kBlockBytes, kEightRows);

    // Tile i of the keys and of the values is in slot i % 2.
    auto const start_copy = [&](int at, Element const* cache, int i) {
        if (i < tiles)
        {
            copy_rows<HopperTile<kHeadDim>, kHeadDim, kHopperKeys, kHopperThreads>(
                dynamic_shared() + at + i % 2 * kBytes<kHeadDim>,
                cache + cached + static_cast<int64_t>(i) * kHopperKeys * kHeadDim,
                RowsBefore{end - begin - i * kHopperKeys}, static_cast<int>(threadIdx.x));
        }
    };
    auto const skip_slot = [](int i) { return skip_bytes(i % 2 * kBytes<kHeadDim>); };
    // Waits for the copies this step needs, and until every thread is done with the step before.
    auto const begin_step = [&] {
        copy_async_wait<0>();
        wgmma_fence_shared();
        __syncthreads();
    };
    // Starts those for the next step, into slots that were read in the step before.
    auto const start_copies = [&](int i) {
        start_copy(kKeysAt<kHeadDim>, arguments.keys, i + 1);
        start_copy(kValuesAt<kHeadDim>, arguments.values, i);
        copy_async_commit();
    };
    OnlineSoftmax<1> softmax(arguments.scale);
    float scores[1][16][4];
    float factor[1][2];
    auto const soften = [&](uint32_t(&weights)[1][8][4], int i) {
        int32_t const key = begin + i * kHopperKeys;
        if (rows.end_for_all - key < kHopperKeys || rows.begin_for_all > key)
        {
            mask_rows(scores, rows, key, desc.sliding_window);
        }
        bool const is_raised = softmax.raise(factor, scores);
        softmax.template exponentiate<Element>(weights, scores);
        return is_raised;
    };

    copy_query<Element, kHeadDim>(arguments, rows);
    start_copy(kKeysAt<kHeadDim>, arguments.keys, 0);
    copy_async_commit();

    float output[1][kHeadDim / 8][4] = {};
    uint32_t weights[1][8][4] = {}; // A operand of the product that runs
    uint32_t next_weights[1][8][4];
    begin_step();
    wgmma_fence();
    start_scores<Element, kHeadDim>(scores[0], query, keys);
    wgmma_commit();
    start_copies(0);
    wgmma_wait<0>();
    wgmma_keep(scores[0]);
    soften(next_weights, 0);
    bool is_raised = false; // of the output there is nothing to rescale yet
    // Ends the product with the values before. It begins a step, and the exponentials end one: with the wait behind them
    // in one piece of straight code the assembler puts it first, and they no longer run beside the product
    // (benchmarks/kernels/sass.py looks at what it has made).
    auto const end_product = [&] {
        wgmma_wait<0>();
        wgmma_keep(output[0]);
        wgmma_keep(weights[0]);
        if (is_raised)
        {
            rescale_rows(output, factor);
        }
#pragma unroll
        for (int k = 0; k < 8; ++k)
        {
#pragma unroll
            for (int j = 0; j < 4; ++j)
            {
                weights[0][k][j] = next_weights[0][k][j];
            }
        }
    };
    for (int i = 1; i < tiles; ++i)
    {
        end_product();
        begin_step();
        wgmma_keep(output[0]);
        wgmma_fence();
        start_scores<Element, kHeadDim>(scores[0], query, keys + skip_slot(i));
        wgmma_commit();
        start_values<Element>(output[0], weights[0], values + skip_slot(i - 1));
        wgmma_commit();
        start_copies(i);
        wgmma_wait<1>();
        wgmma_keep(scores[0]);
        is_raised = soften(next_weights, i);
    }
    end_product();
    begin_step();
    wgmma_keep(output[0]);
    wgmma_fence();
    start_values<Element>(output[0], weights[0], values + skip_slot(tiles - 1));
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_keep(output[0]);

    stage_rows<Element, kHeadDim>(output, softmax); // in place of the query, which every thread is done with
    __syncwarp();
    write_rows<Element, kHeadDim, kFragmentRows>(arguments, rows);
}

template <typename Element, int kHeadDim>
__global__ void __launch_bounds__(kHopperThreads, 1) hopper_prefill_kernel(PrefillArguments<Element> const arguments)
{
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
    __trap(); // never launched there
#else
    attend_rows<Element, kHeadDim>(arguments);
#endif
}

} // namespace

template <typename Element, int kHeadDim>
q2export_status launch_hopper_prefill(
    PrefillArguments<Element> const& arguments, PrefillPlan const& plan, q2export_stream stream)
{
    LaunchShape shape{plan.blocks};
    shape.threads = kHopperThreads;
    shape.shared_bytes = kRowsAt<kHeadDim> + kPrefillRowsBytes;
    return launch(stream, shape, hopper_prefill_kernel<Element, kHeadDim>, arguments);
}

template q2export_status launch_hopper_prefill<__half, 64>(
    PrefillArguments<__half> const&, PrefillPlan const&, q2export_stream);
template q2export_status launch_hopper_prefill<__half, 128>(
    PrefillArguments<__half> const&, PrefillPlan const&, q2export_stream);
template q2export_status launch_hopper_prefill<__nv_bfloat16, 64>(
    PrefillArguments<__nv_bfloat16> const&, PrefillPlan const&, q2export_stream);
template q2export_status launch_hopper_prefill<__nv_bfloat16, 128>(
    PrefillArguments<__nv_bfloat16> const&, PrefillPlan const&, q2export_stream);

} // namespace q2export
