// Q2RotaryEmbedding, reference: one thread per pair of channels.
#include "common/arguments.h"
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
__global__ void rotary_embedding_kernel(q2export_rotary_desc desc, Element const* x, int64_t const* position_ids,
    float const* inv_freq, Element* y)
{
    int32_t const half = desc.head_dim / 2;
    int64_t const index = element_index(); // [batch, sequence, num_heads, head_dim / 2]
    int64_t const head = index / half;
    int64_t const token = head / desc.num_heads;
    if (token >= desc.batch * desc.sequence)
    {
        return;
    }
    int64_t const offset = head * desc.head_dim;
    rotate_pair(x + offset, y + offset, static_cast<int32_t>(index % half), desc.head_dim, position_ids[token],
        inv_freq, desc.attention_factor);
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
    int64_t const pairs = desc->batch * desc->sequence * desc->num_heads * (desc->head_dim / 2);
    if (pairs == 0)
    {
        return Q2EXPORT_SUCCESS;
    }
    Q2EXPORT_TRY(check_pointer(kOp, "x", x));
    Q2EXPORT_TRY(check_pointer(kOp, "position_ids", position_ids));
    Q2EXPORT_TRY(check_pointer(kOp, "inv_freq", inv_freq));
    Q2EXPORT_TRY(check_pointer(kOp, "y", y));
    return with_element_type(desc->dtype, [&](auto* type) {
        using Element = std::remove_pointer_t<decltype(type)>;
        return launch(stream, one_thread_each(pairs), rotary_embedding_kernel<Element>, *desc,
            static_cast<Element const*>(x), position_ids, inv_freq, static_cast<Element*>(y));
    });
}
