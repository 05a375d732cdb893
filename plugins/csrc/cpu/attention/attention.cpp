// Arguments of attention, and how its queries and keys are cut into tasks.
#include "attention/attention.h"

#include <algorithm>
#include <limits>

#include "common/error.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "common/scratch.h"

namespace q2export::cpu
{
namespace
{

constexpr char kOp[] = "attention";
constexpr int64_t kTaskVectors = 64; // query vectors that share a block of keys
constexpr int64_t kFewTokens = 16;   // up to which blocks of keys are tasks of their own

#if Q2EXPORT_CPU_X86
constexpr AttentionKernels const* kTables[3] = {&kAttentionPortable, &kAttentionAvx2, &kAttentionAvx512};
#else
constexpr AttentionKernels const* kTables[3] = {&kAttentionPortable, &kAttentionPortable, &kAttentionPortable};
#endif

q2export_status check(q2export_cpu_attention_desc const* desc)
{
    Q2EXPORT_TRY(check_pointer(kOp, "desc", desc));
    Q2EXPORT_TRY(check_range(kOp, "batch", desc->batch, 0, INT32_MAX));
    Q2EXPORT_TRY(check_range(kOp, "sequence", desc->sequence, 0, INT32_MAX));
    Q2EXPORT_TRY(check_range(kOp, "capacity", desc->capacity, 0, INT32_MAX));
    Q2EXPORT_TRY(check_range(kOp, "num_kv_heads", desc->num_kv_heads, 1, 1 << 16));
    Q2EXPORT_TRY(check_range(kOp, "num_heads", desc->num_heads, 1, 1 << 16));
    Q2EXPORT_TRY(check_multiple(kOp, "num_heads", desc->num_heads, desc->num_kv_heads));
    Q2EXPORT_TRY(check_range(kOp, "head_dim", desc->head_dim, 2, Q2EXPORT_MAX_HEAD_DIM));
    Q2EXPORT_TRY(check_multiple(kOp, "head_dim", desc->head_dim, 2));
    Q2EXPORT_TRY(check_range(kOp, "sliding_window", desc->sliding_window, 0, INT32_MAX));
    Q2EXPORT_TRY(check_range(kOp, "cache_dtype", desc->cache_dtype, Q2EXPORT_FLOAT32, Q2EXPORT_BFLOAT16));
    int64_t const widths = static_cast<int64_t>(desc->num_heads) * desc->head_dim;
    Q2EXPORT_TRY(check_elements(kOp, "query", desc->batch, desc->sequence, widths));
    return check_elements(kOp, "past_key", desc->batch, desc->capacity, widths);
}

q2export_status check_lengths(
    q2export_cpu_attention_desc const& desc, int64_t const* past_lengths, int64_t const* query_lengths)
{
    for (int64_t row = 0; row < desc.batch; ++row)
    {
        int64_t const past = past_lengths[row];
        int64_t const length = query_lengths[row];
        if (length < 0 || length > desc.sequence || past < 0 || past > desc.capacity - length)
        {
            return fail(Q2EXPORT_INVALID_ARGUMENT,
                "%s: row %lld has past_length %lld and query_length %lld, expected lengths of 0 .. %lld that fit a "
                "capacity of %lld",
                kOp, static_cast<long long>(row), static_cast<long long>(past), static_cast<long long>(length),
                static_cast<long long>(desc.sequence), static_cast<long long>(desc.capacity));
        }
    }
    return Q2EXPORT_SUCCESS;
}

int64_t ceil_div(int64_t value, int64_t divisor)
{
    return (value + divisor - 1) / divisor;
}

void clear(Attention const& attention, Queries const& queries, float* merged)
{
    int64_t const stride = part_stride(attention);
    std::fill(merged, merged + part_floats(attention, queries), 0.0f);
    for (int64_t row = 0; row < queries.count * attention.group(); ++row)
    {
        merged[row * stride] = -std::numeric_limits<float>::infinity();
    }
}

// Queries of one task; count 0 where all of them are padding.
Queries task_queries(Attention const& attention, int64_t index, int64_t tokens, int64_t token_tasks)
{
    q2export_cpu_attention_desc const& desc = attention.desc;
    int64_t const token = index % token_tasks * tokens;
    int64_t const kv_head = index / token_tasks % desc.num_kv_heads;
    int64_t const row = index / token_tasks / desc.num_kv_heads;
    return {row, kv_head, token, std::clamp<int64_t>(attention.query_lengths[row] - token, 0, tokens)};
}

// Many new tokens: a task takes some of them through all of their keys.
void attend_long(Attention const& attention, AttentionKernels const& kernels, int64_t tokens, int64_t token_tasks,
    q2export_cpu_parallel_for const* pool)
{
    int64_t const tasks = attention.desc.batch * attention.desc.num_kv_heads * token_tasks;
    parallel_for(pool, tasks, [&](int64_t index) {
        // The last tokens see most: first, so that no thread is left with them in the end.
        Queries const queries = task_queries(attention, tasks - 1 - index, tokens, token_tasks);
        if (queries.count == 0)
        {
            return;
        }
        int64_t const floats = part_floats(attention, queries);
        float* const part
            = static_cast<float*>(thread_scratch(Scratch::kParts, static_cast<size_t>(2 * floats) * sizeof(float)));
        float* const merged = part + floats;
        clear(attention, queries, merged);
        KeyBlocks const blocks = visible_blocks(attention, queries);
        for (int64_t block = blocks.first; block < blocks.last; ++block)
        {
            kernels.attend_block(attention, queries, block, part);
            kernels.merge(attention, queries, part, merged);
        }
        kernels.finish(attention, queries, merged);
    });
}

// Few new tokens: every block of keys is a task, and what the blocks found is merged afterwards.
void attend_short(Attention const& attention, AttentionKernels const& kernels, float* parts, int64_t most_blocks,
    int64_t floats, int64_t tokens, int64_t token_tasks, q2export_cpu_parallel_for const* pool)
{
    int64_t const items = attention.desc.batch * attention.desc.num_kv_heads * token_tasks;
    parallel_for(pool, items * most_blocks, [&](int64_t index) {
        Queries const queries = task_queries(attention, index / most_blocks, tokens, token_tasks);
        KeyBlocks const blocks = visible_blocks(attention, queries);
        int64_t const block = blocks.first + index % most_blocks;
        if (queries.count != 0 && block < blocks.last)
        {
            kernels.attend_block(attention, queries, block, parts + index * floats);
        }
    });
    for (int64_t item = 0; item < items; ++item)
    {
        Queries const queries = task_queries(attention, item, tokens, token_tasks);
        if (queries.count == 0)
        {
            continue;
        }
        float* const merged = parts + items * most_blocks * floats;
        clear(attention, queries, merged);
        KeyBlocks const blocks = visible_blocks(attention, queries);
        for (int64_t block = blocks.first; block < blocks.last; ++block)
        {
            int64_t const index = item * most_blocks + block - blocks.first;
            kernels.merge(attention, queries, parts + index * floats, merged);
        }
        kernels.finish(attention, queries, merged);
    }
}

void run(Attention attention, q2export_cpu_parallel_for const* pool)
{
    AttentionKernels const& kernels = chosen(kTables);
    q2export_cpu_attention_desc const& desc = attention.desc;
    int64_t const group = attention.group();
    int64_t const tokens = std::max<int64_t>(1, kTaskVectors / group);
    int64_t const token_tasks = ceil_div(desc.sequence, tokens);
    int64_t most_blocks = 0;
    int64_t const items = desc.batch * desc.num_kv_heads * token_tasks;
    for (int64_t item = 0; item < items; ++item)
    {
        KeyBlocks const blocks = visible_blocks(attention, task_queries(attention, item, tokens, token_tasks));
        most_blocks = std::max(most_blocks, blocks.last - blocks.first);
    }
    int64_t const floats = tokens * group * part_stride(attention);
    bool const is_short = desc.batch * desc.sequence <= kFewTokens;
    int64_t const rotated = desc.batch * desc.sequence * desc.num_heads * desc.head_dim;
    int64_t const parts = is_short ? (items * most_blocks + 1) * floats : 0;
    attention.rotated = static_cast<float*>(
        thread_scratch(Scratch::kQueries, static_cast<size_t>(rotated + parts) * sizeof(float)));
    int64_t const vector = static_cast<int64_t>(desc.num_heads) * desc.head_dim;
    parallel_for(is_short ? nullptr : pool, desc.batch * desc.sequence, [&](int64_t index) {
        int64_t const row = index / desc.sequence;
        int64_t const token = index % desc.sequence;
        if (token < attention.query_lengths[row])
        {
            kernels.append(attention, row, token);
        }
        else
        {
            std::fill(attention.output + index * vector, attention.output + (index + 1) * vector, 0.0f);
        }
    });
    if (is_short)
    {
        attend_short(
            attention, kernels, attention.rotated + rotated, most_blocks, floats, tokens, token_tasks, pool);
    }
    else
    {
        attend_long(attention, kernels, tokens, token_tasks, pool);
    }
}

} // namespace

KeyBlocks visible_blocks(Attention const& attention, Queries const& queries)
{
    int64_t const past = attention.past_lengths[queries.row];
    int64_t const window = attention.desc.sliding_window;
    int64_t const oldest = window == 0 ? 0 : std::max<int64_t>(0, past + queries.token - window + 1);
    return {oldest / kKeyBlock, queries.count == 0 ? 0 : ceil_div(past + queries.token + queries.count, kKeyBlock)};
}

} // namespace q2export::cpu

extern "C" q2export_status q2export_cpu_attention(q2export_cpu_attention_desc const* desc, float const* query,
    float const* key, float const* value, int64_t const* past_lengths, int64_t const* query_lengths,
    float const* inv_freq, void* key_cache, void* value_cache, float* output,
    q2export_cpu_parallel_for const* parallel_for)
{
    using namespace q2export::cpu;
    Q2EXPORT_TRY(check(desc));
    if (desc->batch == 0 || desc->sequence == 0)
    {
        return Q2EXPORT_SUCCESS;
    }
    struct
    {
        char const* name;
        void const* pointer;
    } const pointers[] = {{"query", query}, {"key", key}, {"value", value}, {"past_lengths", past_lengths},
        {"query_lengths", query_lengths}, {"past_key", key_cache}, {"past_value", value_cache}, {"output", output}};
    for (auto const& each : pointers)
    {
        Q2EXPORT_TRY(check_pointer(kOp, each.name, each.pointer));
    }
    Q2EXPORT_TRY(check_lengths(*desc, past_lengths, query_lengths));
    run({*desc, key, value, query, inv_freq, past_lengths, query_lengths, static_cast<unsigned char*>(key_cache),
            static_cast<unsigned char*>(value_cache), output, nullptr},
        parallel_for);
    return Q2EXPORT_SUCCESS;
}
