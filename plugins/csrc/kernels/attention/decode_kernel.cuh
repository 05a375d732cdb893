// The kernel of decode attention; docs/kernels.md says why it has this form.
#pragma once

#include "attention/decode_combine.cuh"
#include "attention/decode_task.cuh"
#include "attention/tile.cuh"

namespace q2export
{

// The barrier of the threads that share a ring of tiles.
template <typename Shape>
__device__ inline void sync_team()
{
    if constexpr (Shape::kRowWarps == 1)
    {
        __syncwarp();
    }
    else
    {
        __syncthreads();
    }
}

// Attention of a warp's rows over the team's tiles of the part: every kTeams-th one.
template <typename Shape, typename Element>
__device__ inline void attend_part(DecodeArguments<Element> const& arguments, DecodeTask const& task,
    int ring, float (&output)[1][Shape::kHeadDim / 8][4], DecodeSoftmax& softmax)
{
    constexpr int kHeadDim = Shape::kHeadDim;
    constexpr int kKeys = Shape::kKeys;
    constexpr int kStepKeys = Shape::kStepKeys;
    int32_t const window = arguments.desc.sliding_window;
    int32_t const team = static_cast<int32_t>(threadIdx.x) / Shape::kTeamThreads;
    int32_t const thread = static_cast<int32_t>(threadIdx.x) % Shape::kTeamThreads;
    int64_t const cached = cache_offset(arguments.desc, task.b, task.kv_head, 0);
    int32_t const first_tile = task.tile_begin + team;
    int32_t const steps
        = first_tile < task.tile_end ? (task.tile_end - first_tile + Shape::kTeams - 1) / Shape::kTeams : 0;

    auto const start_copy = [&](int32_t step) {
        if (step < steps)
        {
            int32_t const first = (first_tile + step * Shape::kTeams) * kKeys;
            int64_t const offset = cached + static_cast<int64_t>(first) * kHeadDim;
            unsigned char* const stage = dynamic_shared() + ring + step % kDecodeStages * Shape::kStageBytes;
            RowsBetween const there{task.key_begin - first, task.key_end - first};
            copy_rows<WholeRows<kHeadDim>, kHeadDim, kKeys, Shape::kTeamThreads>(
                stage, arguments.keys + offset, there, thread);
            copy_rows<WholeRows<kHeadDim>, kHeadDim, kKeys, Shape::kTeamThreads>(
                stage + Shape::kStageBytes / 2, arguments.values + offset, there, thread);
        }
        copy_async_commit(); // also without copies, so that groups and steps stay in step
    };
    for (int32_t step = 0; step < kDecodeStages - 1; ++step)
    {
        start_copy(step);
    }

    // The lane's rows. Padding has no query and computes what is not used.
    int32_t const warp_row = thread / kWarpSize * kFragmentRows;
    int32_t const rows[2] = {warp_row + lane_index() / 4, warp_row + lane_index() / 4 + 8};
    Element const* sources[2];
    int32_t seen_begin[2];
    int32_t seen_end[2];
#pragma unroll
    for (int r = 0; r < 2; ++r)
    {
        bool const is_there = rows[r] < task.rows && !task.is_padding(rows[r]);
        int32_t const token = task.token_of(rows[r]);
        sources[r] = is_there ? arguments.query + task.row_offset(arguments.desc, rows[r]) : nullptr;
        seen_begin[r] = task.seen_begin(token, window);
        seen_end[r] = task.seen_end(token);
    }
    uint32_t query[kHeadDim / 16][4];
    load_query<kHeadDim>(query, sources[0], sources[1]);
    auto const load_fragment = [&query](uint32_t(&fragment)[4], int, int k) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
        {
            fragment[i] = query[k][i];
        }
    };

    // Keys that all rows of the warp see need no mask. The warp has no row that counts where its first is padding.
    int32_t const all_begin = task.seen_begin(task.token_of(warp_row + kFragmentRows - 1), window);
    int32_t const all_end = task.seen_end(task.token_of(warp_row));
    bool const is_idle = warp_row >= task.rows || task.is_padding(warp_row);
#pragma unroll 1
    for (int32_t step = 0; step < steps; ++step)
    {
        copy_async_wait<kDecodeStages - 2>();
        sync_team<Shape>(); // the others' copies have arrived, and nobody reads the stage that is filled next
        start_copy(step + kDecodeStages - 1);
        if (is_idle)
        {
            continue;
        }
        int const stage = ring + step % kDecodeStages * Shape::kStageBytes;
        int32_t const first = (first_tile + step * Shape::kTeams) * kKeys;
#pragma unroll 1
        for (int32_t key = 0; key < kKeys; key += kStepKeys)
        {
            int const keys = stage + key * kHeadDim * 2;
            float scores[1][kStepKeys / 8][4];
            score_keys<Element, kHeadDim>(scores, load_fragment, keys);
            int32_t const position = first + key;
            if (position < all_begin || position + kStepKeys > all_end)
            {
                int32_t const begin[2] = {seen_begin[0] - position, seen_begin[1] - position};
                int32_t const end[2] = {seen_end[0] - position, seen_end[1] - position};
                hide_keys(scores[0], begin, end, window > 0);
            }
            float factor[1][2];
            if (softmax.raise(factor, scores))
            {
                rescale_rows(output, factor);
            }
            uint32_t weights[1][kStepKeys / 16][4];
            softmax.template exponentiate<Element>(weights, scores);
            add_values<Element, kHeadDim>(output, weights, keys + Shape::kStageBytes / 2);
        }
    }
    copy_async_wait<0>();
}

template <typename Element, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 8 / Shape::kWarps)
    decode_kernel(DecodeArguments<Element> const arguments)
{
    DecodeTask const task = locate_task<Shape>(arguments);
    if (task.parts == 0)
    {
        return;
    }
    unsigned char* const shared = dynamic_shared();
    int const ring = static_cast<int>(threadIdx.x) / Shape::kTeamThreads * Shape::kTeamBytes;
    float output[1][Shape::kHeadDim / 8][4] = {};
    DecodeSoftmax softmax(arguments.factor);
    attend_part<Shape>(arguments, task, ring, output, softmax);

    sync_team<Shape>(); // the team has read its last tile: its ring is free for what follows
    write_team_result<Shape>(shared + ring, output[0], softmax);
    __syncthreads();
    merge_teams<Shape>(arguments, task, shared);
    if (task.parts > 1 && is_last_part<Shape>(arguments, task, shared))
    {
        combine_parts<Shape>(arguments, task, shared);
    }
}

} // namespace q2export
