// Causal grouped-query attention over the cache (Ainslie et al. 2023), reference: one block per query head. It computes
// what the fast kernels do not: float32, any head_dim.
//
// Softmax in one pass over tiles of keys, with a running maximum (Milakov and Gimelshein 2018). Everything is float.
#pragma once

#include <cmath>

#include "attention/cache.cuh"
#include "common/element.cuh"
#include "common/launch.cuh"

namespace q2export
{

constexpr int kReferenceKeys = 128; // keys of one step

template <typename Element>
struct ReferenceArguments
{
    q2export_attention_desc desc;
    Element const* query; // [batch, sequence, num_heads, head_dim]
    Element const* keys; // [batch, num_kv_heads, capacity, head_dim], as are the values
    Element const* values;
    int64_t const* past_lengths;
    int64_t const* query_lengths;
    Element* output;
};

// Scores of keys first .. first + count for the query in shared memory.
template <typename Element>
__device__ void score_tile(
    q2export_attention_desc const& desc, float const* query, Element const* keys, int64_t count, float* scores)
{
    for (int64_t t = threadIdx.x; t < count; t += blockDim.x)
    {
        float dot = 0.0F;
        for (int32_t d = 0; d < desc.head_dim; ++d)
        {
            dot += query[d] * load(keys + t * desc.head_dim + d);
        }
        scores[t] = dot * desc.scale;
    }
}

template <typename Element>
__global__ void reference_kernel(ReferenceArguments<Element> const arguments)
{
    q2export_attention_desc const& desc = arguments.desc;
    __shared__ float query[Q2EXPORT_MAX_HEAD_DIM];
    __shared__ float sum[Q2EXPORT_MAX_HEAD_DIM]; // of values, weighted; each channel belongs to one thread
    __shared__ float scores[kReferenceKeys];

    int64_t const head_index = blockIdx.x; // [batch, sequence, num_heads]
    int64_t const token = head_index / desc.num_heads;
    int64_t const kv_head = head_index % desc.num_heads / (desc.num_heads / desc.num_kv_heads);
    int64_t const b = token / desc.sequence;
    int64_t const s = token % desc.sequence;
    int64_t const offset = head_index * desc.head_dim;
    RowLengths const row = row_lengths(desc, arguments.past_lengths, arguments.query_lengths, b);
    bool const is_padding = s >= row.fresh;

    for (int32_t d = threadIdx.x; d < desc.head_dim; d += blockDim.x)
    {
        query[d] = is_padding ? 0.0F : load(arguments.query + offset + d);
        sum[d] = 0.0F;
    }
    __syncthreads();

    // A token sees itself and what came before it, down to the window's oldest.
    int64_t const end = is_padding ? 0 : row.past + s + 1;
    int64_t const begin = desc.sliding_window > 0 && end > desc.sliding_window ? end - desc.sliding_window : 0;
    float maximum = -INFINITY; // the running maximum and normaliser are the same in every thread
    float normaliser = 0.0F;
    for (int64_t first = begin; first < end; first += kReferenceKeys)
    {
        int64_t const count = end - first < kReferenceKeys ? end - first : kReferenceKeys;
        int64_t const cached = cache_offset(desc, b, kv_head, first);
        score_tile(desc, query, arguments.keys + cached, count, scores);
        __syncthreads();
        float new_maximum = maximum;
        for (int64_t t = 0; t < count; ++t)
        {
            new_maximum = fmaxf(new_maximum, scores[t]);
        }
        // While all scores are -inf there is nothing to rescale, and -inf - -inf would be NaN.
        float const rescale = maximum == new_maximum ? 1.0F : expf(maximum - new_maximum);
        maximum = new_maximum;
        normaliser *= rescale;
        for (int64_t t = 0; t < count; ++t)
        {
            normaliser += expf(scores[t] - maximum);
        }
        for (int32_t d = threadIdx.x; d < desc.head_dim; d += blockDim.x)
        {
            float weighted = sum[d] * rescale;
            for (int64_t t = 0; t < count; ++t)
            {
                weighted += expf(scores[t] - maximum) * load(arguments.values + cached + t * desc.head_dim + d);
            }
            sum[d] = weighted;
        }
        __syncthreads(); // before the next tile overwrites the scores
    }

    for (int32_t d = threadIdx.x; d < desc.head_dim; d += blockDim.x)
    {
        store(arguments.output + offset + d, is_padding ? 0.0F : sum[d] / normaliser);
    }
}

// Queues the attention of all tokens. `query` stands in for the tensors' own where it has been rotated.
template <typename Element>
q2export_status reference_attention(q2export_attention_desc const& desc, q2export_attention_tensors const& tensors,
    Element const* query, q2export_stream stream)
{
    ReferenceArguments<Element> const arguments{desc, query, static_cast<Element const*>(tensors.present_key),
        static_cast<Element const*>(tensors.present_value), tensors.past_lengths, tensors.query_lengths,
        static_cast<Element*>(tensors.output)};
    return launch(
        stream, LaunchShape{desc.batch * desc.sequence * desc.num_heads}, reference_kernel<Element>, arguments);
}

} // namespace q2export
