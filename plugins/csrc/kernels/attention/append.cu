#include "attention/append.cuh"

#include "attention/cache.cuh"
#include "common/element.cuh"
#include "common/launch.cuh"
#include "rotary/rotation.cuh"

namespace q2export
{
namespace
{

// A head of a token that is moved.
template <typename Element>
struct Move
{
    Element const* source; // null where there is nothing to do
    Element* target;
    bool is_turned;
};

// Heads of a token that are moved: those of the query if it is turned, then the keys', then the values'.
template <typename Element>
__device__ int32_t moved_heads(AppendArguments<Element> const& arguments)
{
    bool const rotates = arguments.rotation.inv_freq != nullptr;
    return (rotates ? arguments.desc.num_heads : 0) + 2 * arguments.desc.num_kv_heads;
}

template <typename Element>
__device__ Move<Element> move_of(
    AppendArguments<Element> const& arguments, int64_t token, int32_t head, int64_t b, int64_t position)
{
    q2export_attention_desc const& desc = arguments.desc;
    bool const rotates = arguments.rotation.inv_freq != nullptr;
    if (rotates && head < desc.num_heads)
    {
        int64_t const offset = (token * desc.num_heads + head) * desc.head_dim;
        return {arguments.query + offset, arguments.rotated_query + offset, true};
    }
    int32_t const kv = head - (rotates ? desc.num_heads : 0);
    bool const is_key = kv < desc.num_kv_heads;
    int32_t const kv_head = is_key ? kv : kv - desc.num_kv_heads;
    int64_t const source = (token * desc.num_kv_heads + kv_head) * desc.head_dim;
    int64_t const target = cache_offset(desc, b, kv_head, position);
    return {(is_key ? arguments.key : arguments.value) + source, (is_key ? arguments.keys : arguments.values) + target,
        rotates && is_key};
}

template <typename Element>
__device__ void clear_arrivals(AppendArguments<Element> const& arguments)
{
    if (blockIdx.x == 0)
    {
        for (int64_t i = threadIdx.x; i < arguments.num_arrivals; i += blockDim.x)
        {
            arguments.arrivals[i] = 0;
        }
    }
}

// One block per token. A thread moves two vectors of a head, head_dim / 2 apart; what it reads first is on its way
// while the turns are computed.
template <typename Element>
__global__ void __launch_bounds__(kMaxMoveThreads, kMoveBlocks)
    append_token_kernel(AppendArguments<Element> const arguments)
{
    constexpr int kVector = kVectorElements<Element>;
    __shared__ float2 shared[kMaxTablePairs];
    q2export_attention_desc const& desc = arguments.desc;
    clear_arrivals(arguments);
    int32_t const half = desc.head_dim / 2;
    int32_t const chunks = half / kVector;
    int32_t const items = moved_heads(arguments) * chunks;
    int32_t const token = static_cast<int32_t>(blockIdx.x);
    int32_t const sequence = static_cast<int32_t>(desc.sequence);
    int32_t const b = token / sequence;
    int32_t const s = token % sequence;

    uint4 first{};
    uint4 second{};
    auto const read = [&](int32_t item) {
        Element const* const source = move_of(arguments, token, item / chunks, b, 0).source + item % chunks * kVector;
        first = load_vector(source);
        second = load_vector(source + half);
    };
    int32_t item = static_cast<int32_t>(threadIdx.x);
    if (item < items)
    {
        read(item);
    }
    RowLengths const row = row_lengths(desc, arguments.past_lengths, arguments.query_lengths, b);
    if (s >= row.fresh)
    {
        return;
    }
    int64_t const position = row.past + s;
    TurnTable<kVector> table(shared, half);
    if (arguments.rotation.inv_freq != nullptr)
    {
        table.fill(position, arguments.rotation.inv_freq, arguments.rotation.attention_factor);
    }
    while (item < items)
    {
        int32_t const chunk = item % chunks;
        Move<Element> const move = move_of(arguments, token, item / chunks, b, position);
        if (move.is_turned)
        {
            table.template rotate_vectors<Element>(first, second, chunk);
        }
        store_vector(move.target + chunk * kVector, first);
        store_vector(move.target + half + chunk * kVector, second);
        item += static_cast<int32_t>(blockDim.x);
        if (item < items)
        {
            read(item);
        }
    }
}

// One thread per channel: any head_dim, any alignment. The thread of a turned pair's lower channel moves both.
template <typename Element>
__global__ void append_channel_kernel(AppendArguments<Element> const arguments)
{
    q2export_attention_desc const& desc = arguments.desc;
    clear_arrivals(arguments);
    int64_t const index = element_index(); // [batch, sequence, heads, head_dim]
    int32_t const channel = static_cast<int32_t>(index % desc.head_dim);
    int64_t const heads = moved_heads(arguments);
    int64_t const token = index / desc.head_dim / heads;
    int64_t const b = token / desc.sequence;
    int64_t const s = token % desc.sequence;
    if (b >= desc.batch)
    {
        return;
    }
    RowLengths const row = row_lengths(desc, arguments.past_lengths, arguments.query_lengths, b);
    if (s >= row.fresh)
    {
        return;
    }
    int64_t const position = row.past + s;
    int32_t const head = static_cast<int32_t>(index / desc.head_dim % heads);
    Move<Element> const move = move_of(arguments, token, head, b, position);
    if (!move.is_turned)
    {
        move.target[channel] = move.source[channel];
        return;
    }
    int32_t const half = desc.head_dim / 2;
    if (channel < half)
    {
        float2 const turn
            = turn_of(position, arguments.rotation.inv_freq, channel, arguments.rotation.attention_factor);
        float2 const turned = rotate(load(move.source + channel), load(move.source + channel + half), turn);
        store(move.target + channel, turned.x);
        store(move.target + channel + half, turned.y);
    }
}

template <typename Element>
bool takes_vectors(AppendArguments<Element> const& arguments)
{
    q2export_attention_desc const& desc = arguments.desc;
    int32_t const half = desc.head_dim / 2;
    bool const is_aligned = is_vector_aligned(arguments.query) && is_vector_aligned(arguments.key)
        && is_vector_aligned(arguments.value) && is_vector_aligned(arguments.rotated_query)
        && is_vector_aligned(arguments.keys) && is_vector_aligned(arguments.values);
    return is_aligned && desc.head_dim % (2 * kVectorElements<Element>) == 0 && half <= kMaxTablePairs
        && desc.num_heads <= kMaxTableHeads;
}

} // namespace

template <typename Element>
q2export_status append(AppendArguments<Element> const& arguments, q2export_stream stream)
{
    q2export_attention_desc const& desc = arguments.desc;
    int64_t const tokens = desc.batch * desc.sequence;
    int64_t const turned = arguments.rotation.inv_freq != nullptr ? desc.num_heads : 0;
    int64_t const heads = turned + 2 * int64_t{desc.num_kv_heads};
    if (takes_vectors(arguments))
    {
        LaunchShape shape{tokens};
        shape.threads = threads_for_moves(static_cast<int32_t>(heads) * (desc.head_dim / 2 / kVectorElements<Element>));
        return launch(stream, shape, append_token_kernel<Element>, arguments);
    }
    return launch(
        stream, one_thread_each(tokens * heads * desc.head_dim), append_channel_kernel<Element>, arguments);
}

template q2export_status append(AppendArguments<float> const&, q2export_stream);
template q2export_status append(AppendArguments<__half> const&, q2export_stream);
template q2export_status append(AppendArguments<__nv_bfloat16> const&, q2export_stream);

} // namespace q2export
