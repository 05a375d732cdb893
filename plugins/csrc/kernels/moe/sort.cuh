// Slots sorted by expert, and the list of token tiles, on the device and without atomics whose order matters.
//
// Up to kFewTokens tokens one block does it all. Beyond, a first kernel routes: each block a chunk of tokens, of which
// it counts the slots of each expert; a second kernel adds the counts up and puts the slots in their places.
#pragma once

#include <cstdint>

#include "common/ptx.cuh"
#include "moe/route.cuh"

namespace q2export
{

struct SortArguments
{
    q2export_moe_desc desc;
    void const* router_logits;
    MoeWorkspace parts;
    int32_t chunk; // tokens of a routing block
    int32_t chunks;
    int32_t tile_tokens;
};

// Per expert, in shared memory.
struct Counters
{
    int32_t* count; // slots
    int32_t* below; // slots of earlier chunks
    int32_t* first; // position
    int32_t* first_tile;
};

constexpr size_t counter_bytes(int32_t num_experts)
{
    return static_cast<size_t>(num_experts) * 4 * sizeof(int32_t);
}

__device__ inline Counters shared_counters(int32_t num_experts)
{
    auto* const shared = reinterpret_cast<int32_t*>(dynamic_shared());
    return {shared, shared + num_experts, shared + 2 * num_experts, shared + 3 * num_experts};
}

__device__ inline void clear(int32_t* counters, int32_t count)
{
    for (int32_t i = threadIdx.x; i < count; i += blockDim.x)
    {
        counters[i] = 0;
    }
}

// Routes the tokens first .. end - 1, counts the slots of each expert, and ranks each slot among those of its expert.
// Tokens come in rounds of 32: in a round, an expert's tokens are the bits of a mask.
template <int kPerLane, typename Element>
__device__ inline void route_tokens(
    SortArguments const& arguments, int64_t first, int64_t end, int32_t* count, uint32_t* mask)
{
    q2export_moe_desc const& desc = arguments.desc;
    MoeWorkspace const& parts = arguments.parts;
    int const lane = threadIdx.x % kWarp;
    int64_t const top_k = desc.top_k;
    auto const* const logits = static_cast<Element const*>(arguments.router_logits);
    for (int64_t base = first; base < end; base += kTokensPerRound)
    {
        int32_t const tokens = static_cast<int32_t>(end - base < kTokensPerRound ? end - base : kTokensPerRound);
        for (int32_t i = threadIdx.x / kWarp; i < tokens; i += blockDim.x / kWarp)
        {
            int64_t const token = base + i;
            int32_t* const chosen = parts.chosen + token * top_k;
            route_token<kPerLane>(desc, logits + token * desc.num_experts, lane, chosen, parts.weight + token * top_k);
            for (int32_t slot = lane; slot < desc.top_k; slot += kWarp)
            {
                atomicOr(mask + chosen[slot], 1U << i); // chosen by this lane
            }
        }
        __syncthreads();
        for (int32_t i = threadIdx.x; i < tokens * desc.top_k; i += blockDim.x)
        {
            int64_t const slot = base * top_k + i;
            int32_t const expert = parts.chosen[slot];
            uint32_t const earlier = (1U << (i / desc.top_k)) - 1;
            parts.rank[slot] = count[expert] + __popc(mask[expert] & earlier);
        }
        __syncthreads();
        for (int32_t expert = threadIdx.x; expert < desc.num_experts; expert += blockDim.x)
        {
            count[expert] += __popc(mask[expert]);
            mask[expert] = 0;
        }
        __syncthreads();
    }
}

__device__ inline int32_t tiles_for(int32_t slots, int32_t tile_tokens)
{
    return (slots + tile_tokens - 1) / tile_tokens;
}

// Sum over this lane and those before it.
__device__ inline int32_t inclusive_sum(int32_t value, int lane)
{
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2)
    {
        int32_t const other = __shfl_up_sync(kAllLanes, value, distance);
        value += lane >= distance ? other : 0;
    }
    return value;
}

// First position and first tile of each expert, from the counts; the number of all tiles. For one warp.
__device__ inline int32_t scan_experts(Counters const& counters, int32_t num_experts, int32_t tile_tokens, int lane)
{
    int32_t position = 0;
    int32_t tile = 0;
    for (int32_t base = 0; base < num_experts; base += kWarp)
    {
        int32_t const expert = base + lane;
        int32_t const slots = expert < num_experts ? counters.count[expert] : 0;
        int32_t const tiles = tiles_for(slots, tile_tokens);
        int32_t const slots_so_far = inclusive_sum(slots, lane);
        int32_t const tiles_so_far = inclusive_sum(tiles, lane);
        if (expert < num_experts)
        {
            counters.first[expert] = position + slots_so_far - slots;
            counters.first_tile[expert] = tile + tiles_so_far - tiles;
        }
        position += __shfl_sync(kAllLanes, slots_so_far, kWarp - 1);
        tile += __shfl_sync(kAllLanes, tiles_so_far, kWarp - 1);
    }
    return tile;
}

// With counts of all slots, and of those before this chunk of tokens: puts the slots of the chunk, first .. end - 1, in
// their places. The block that `writes_tiles` lists the token tiles too.
__device__ inline void place_slots(
    SortArguments const& arguments, Counters const& counters, int64_t first, int64_t end, bool writes_tiles)
{
    int32_t const num_experts = arguments.desc.num_experts;
    MoeWorkspace const& parts = arguments.parts;
    int const lane = threadIdx.x % kWarp;
    int const warp = threadIdx.x / kWarp;
    if (warp == 0)
    {
        int32_t const tiles = scan_experts(counters, num_experts, arguments.tile_tokens, lane);
        if (writes_tiles && lane == 0)
        {
            *parts.tile_count = tiles;
        }
    }
    __syncthreads();
    for (int64_t slot = first + threadIdx.x; slot < end; slot += blockDim.x)
    {
        int32_t const expert = parts.chosen[slot];
        int32_t const position = counters.first[expert] + counters.below[expert] + parts.rank[slot];
        parts.sorted[position] = static_cast<int32_t>(slot);
    }
    for (int32_t expert = warp; writes_tiles && expert < num_experts; expert += blockDim.x / kWarp)
    {
        int32_t const slots = counters.count[expert];
        int32_t const first_tile = counters.first_tile[expert];
        int32_t const tiles = tiles_for(slots, arguments.tile_tokens);
        for (int32_t i = lane; i < tiles; i += kWarp)
        {
            parts.tiles[first_tile + i] = {expert, first_tile, tiles, counters.first[expert], slots};
        }
    }
}

// One block: all tokens.
template <int kPerLane, typename Element>
__global__ void __launch_bounds__(1024, 1) route_and_sort_kernel(SortArguments arguments)
{
    allow_next_kernel();
    int32_t const num_experts = arguments.desc.num_experts;
    int64_t const tokens = arguments.desc.num_tokens;
    Counters const counters = shared_counters(num_experts);
    clear(counters.count, 2 * num_experts);
    __syncthreads();
    // The masks are zero again when they are read as counts of what is before the only chunk.
    auto* const mask = reinterpret_cast<uint32_t*>(counters.below);
    route_tokens<kPerLane, Element>(arguments, 0, tokens, counters.count, mask);
    place_slots(arguments, counters, 0, tokens * arguments.desc.top_k, true);
}

// One block per chunk of tokens.
template <int kPerLane, typename Element>
__global__ void __launch_bounds__(256) route_kernel(SortArguments arguments)
{
    allow_next_kernel();
    int32_t const num_experts = arguments.desc.num_experts;
    Counters const counters = shared_counters(num_experts);
    clear(counters.count, 2 * num_experts);
    __syncthreads();
    int64_t const first = static_cast<int64_t>(blockIdx.x) * arguments.chunk;
    int64_t const end = first + arguments.chunk;
    int64_t const tokens = arguments.desc.num_tokens;
    auto* const mask = reinterpret_cast<uint32_t*>(counters.below);
    route_tokens<kPerLane, Element>(arguments, first, end < tokens ? end : tokens, counters.count, mask);
    int32_t* const histogram = arguments.parts.histogram + static_cast<int64_t>(blockIdx.x) * num_experts;
    for (int32_t expert = threadIdx.x; expert < num_experts; expert += blockDim.x)
    {
        histogram[expert] = counters.count[expert];
    }
}

// Counts of all chunks, and of those before `chunk`. Several loads are under way before the first is added: the
// compiler does not move a load across an atomic.
__device__ inline void add_up_histogram(SortArguments const& arguments, Counters const& counters, int32_t chunk)
{
    constexpr int32_t kLoads = 8;
    int32_t const num_experts = arguments.desc.num_experts;
    int32_t const size = arguments.chunks * num_experts;
    int32_t const threads = blockDim.x;
    for (int32_t base = threadIdx.x; base < size; base += kLoads * threads)
    {
        int32_t slots[kLoads];
#pragma unroll
        for (int32_t i = 0; i < kLoads; ++i)
        {
            int32_t const index = base + i * threads;
            slots[i] = index < size ? arguments.parts.histogram[index] : 0;
        }
#pragma unroll
        for (int32_t i = 0; i < kLoads; ++i)
        {
            int32_t const index = base + i * threads;
            if (slots[i] != 0)
            {
                atomicAdd(counters.count + index % num_experts, slots[i]);
                atomicAdd(counters.below + index % num_experts, index / num_experts < chunk ? slots[i] : 0);
            }
        }
    }
}

// One block per chunk of tokens. Each adds up all counts, which spares a kernel of one block in between.
__global__ void __launch_bounds__(256) sort_kernel(SortArguments arguments)
{
    wait_for_previous_kernel();
    allow_next_kernel();
    int32_t const num_experts = arguments.desc.num_experts;
    int32_t const chunk = static_cast<int32_t>(blockIdx.x);
    Counters const counters = shared_counters(num_experts);
    clear(counters.count, 2 * num_experts);
    __syncthreads();
    add_up_histogram(arguments, counters, chunk);
    __syncthreads();
    int64_t const top_k = arguments.desc.top_k;
    int64_t const first = static_cast<int64_t>(chunk) * arguments.chunk;
    int64_t const end = first + arguments.chunk;
    int64_t const tokens = arguments.desc.num_tokens;
    place_slots(arguments, counters, first * top_k, (end < tokens ? end : tokens) * top_k, chunk == 0);
}

} // namespace q2export
