// Q2RotaryEmbedding: one block per token where head_dim allows 16-byte accesses, else one thread per pair of channels.
#include <type_traits>

#include "common/arguments.h"
#include "common/element.cuh"
#include "common/launch.cuh"
#include "rotary/rotation.cuh"

namespace q2export
{
namespace
{

constexpr char kOp[] = "rotary_embedding";

q2export_status check(q2export_rotary_desc const* desc)
{
    Q2EXPORT_TRY(check_pointer(kOp, "desc", desc));
    Q2EXPORT_TRY(check_dtype(kOp, desc->dtype));
    Q2EXPORT_TRY(check_range(kOp, "batch", desc->batch, 0, INT32_MAX));
    Q2EXPORT_TRY(check_range(kOp, "sequence", desc->sequence, 0, INT32_MAX));
    Q2EXPORT_TRY(check_range(kOp, "num_heads", desc->num_heads, 1, INT32_MAX));
    Q2EXPORT_TRY(check_range(kOp, "head_dim", desc->head_dim, 2, INT32_MAX));
    Q2EXPORT_TRY(check_multiple(kOp, "head_dim", desc->head_dim, 2));
    return check_elements(kOp, "x", desc->batch, desc->sequence, desc->num_heads, desc->head_dim);
}

template <typename Element>
struct RotaryArguments
{
    q2export_rotary_desc desc;
    Element const* x; // [batch, sequence, num_heads, head_dim], as is y
    int64_t const* position_ids;
    float const* inv_freq;
    Element* y;
};

// One block per token. A thread holds both halves of its pairs before it writes either: y may be x. What it reads first
// is on its way while the turns are computed.
template <typename Element>
__global__ void __launch_bounds__(kMaxMoveThreads, kMoveBlocks)
    rotate_token_kernel(RotaryArguments<Element> const arguments)
{
    constexpr int kVector = kVectorElements<Element>;
    __shared__ float2 shared[kMaxTablePairs];
    q2export_rotary_desc const& desc = arguments.desc;
    int32_t const half = desc.head_dim / 2;
    int32_t const chunks = half / kVector;
    int64_t const token = blockIdx.x;
    int32_t const items = desc.num_heads * chunks;
    int64_t const start = token * desc.num_heads * desc.head_dim;

    int64_t offset = 0;
    uint4 first{};
    uint4 second{};
    auto const read = [&](int32_t item) {
        offset = start + static_cast<int64_t>(item / chunks) * desc.head_dim + item % chunks * kVector;
        first = load_vector(arguments.x + offset);
        second = load_vector(arguments.x + offset + half);
    };
    int32_t item = static_cast<int32_t>(threadIdx.x);
    if (item < items)
    {
        read(item);
    }
    TurnTable<kVector> table(shared, half);
    table.fill(arguments.position_ids[token], arguments.inv_freq, desc.attention_factor);
    while (item < items)
    {
        table.template rotate_vectors<Element>(first, second, item % chunks);
        store_vector(arguments.y + offset, first);
        store_vector(arguments.y + offset + half, second);
        item += static_cast<int32_t>(blockDim.x);
        if (item < items)
        {
            read(item);
        }
    }
}

template <typename Element>
__global__ void rotate_pair_kernel(RotaryArguments<Element> const arguments)
{
    q2export_rotary_desc const& desc = arguments.desc;
    int32_t const half = desc.head_dim / 2;
    int64_t const index = element_index(); // [batch, sequence, num_heads, head_dim / 2]
    int64_t const head = index / half;
    int64_t const token = head / desc.num_heads;
    if (token >= desc.batch * desc.sequence)
    {
        return;
    }
    int32_t const i = static_cast<int32_t>(index % half);
    int64_t const offset = head * desc.head_dim + i;
    float2 const turn = turn_of(arguments.position_ids[token], arguments.inv_freq, i, desc.attention_factor);
    float2 const turned = rotate(load(arguments.x + offset), load(arguments.x + offset + half), turn);
    store(arguments.y + offset, turned.x);
    store(arguments.y + offset + half, turned.y);
}

template <typename Element>
q2export_status rotate_all(RotaryArguments<Element> const& arguments, q2export_stream stream)
{
    q2export_rotary_desc const& desc = arguments.desc;
    int64_t const tokens = desc.batch * desc.sequence;
    int32_t const half = desc.head_dim / 2;
    constexpr int kVector = kVectorElements<Element>;
    if (half % kVector == 0 && half <= kMaxTablePairs && desc.num_heads <= kMaxTableHeads
        && is_vector_aligned(arguments.x) && is_vector_aligned(arguments.y))
    {
        LaunchShape shape{tokens};
        shape.threads = threads_for_moves(desc.num_heads * (half / kVector));
        return launch(stream, shape, rotate_token_kernel<Element>, arguments);
    }
    return launch(stream, one_thread_each(tokens * desc.num_heads * half), rotate_pair_kernel<Element>, arguments);
}

} // namespace
} // namespace q2export

extern "C" q2export_status q2export_rotary_embedding_workspace_size(q2export_rotary_desc const* desc, size_t* bytes)
{
    using namespace q2export;
    Q2EXPORT_TRY(check(desc));
    Q2EXPORT_TRY(check_pointer(kOp, "bytes", bytes));
    *bytes = 0;
    return Q2EXPORT_SUCCESS;
}

extern "C" q2export_status q2export_rotary_embedding(q2export_rotary_desc const* desc, void const* x,
    int64_t const* position_ids, float const* inv_freq, void* y, void*, size_t, q2export_stream stream)
{
    using namespace q2export;
    Q2EXPORT_TRY(check(desc));
    if (desc->batch * desc->sequence == 0)
    {
        return Q2EXPORT_SUCCESS;
    }
    Q2EXPORT_TRY(check_pointer(kOp, "x", x));
    Q2EXPORT_TRY(check_pointer(kOp, "position_ids", position_ids));
    Q2EXPORT_TRY(check_pointer(kOp, "inv_freq", inv_freq));
    Q2EXPORT_TRY(check_pointer(kOp, "y", y));
    return with_element_type(desc->dtype, [&](auto* type) {
        using Element = std::remove_pointer_t<decltype(type)>;
        RotaryArguments<Element> const arguments{
            *desc, static_cast<Element const*>(x), position_ids, inv_freq, static_cast<Element*>(y)};
        return rotate_all(arguments, stream);
    });
}
