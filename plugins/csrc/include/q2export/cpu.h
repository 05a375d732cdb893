/*
 * C ABI of the CPU kernels of q2export: one function per op, over host memory.
 *
 * Every function
 *   - takes pointers to dense row-major tensors and sizes; knows nothing of ONNX Runtime. Weights may lie at any
 *     even address, as they do in a memory-mapped checkpoint; everything else is aligned to its elements;
 *   - splits its work into tasks and gives them to the caller's parallel-for; without one it runs them itself;
 *   - returns a status; for any but Q2EXPORT_SUCCESS, q2export_cpu_last_error() says which argument was wrong, what
 *     was expected and what was found. Nothing has been written then;
 *   - gives the same bits for a row whatever other rows come along, and however many threads there are.
 *
 * Callers check that q2export_cpu_abi_version() equals Q2EXPORT_CPU_ABI_VERSION before any other call.
 * C99 and C++17.
 */
#ifndef Q2EXPORT_CPU_H
#define Q2EXPORT_CPU_H

#include <stddef.h>
#include <stdint.h>

#include "q2export/kernels.h"

/* Raised whenever a signature, a struct or a meaning below changes. */
#define Q2EXPORT_CPU_ABI_VERSION 4

#ifdef __cplusplus
extern "C" {
#endif

/* Instruction sets, each including those before it. */
typedef int32_t q2export_cpu_isa;
enum {
    Q2EXPORT_CPU_PORTABLE = 0, /* whatever the compiler assumes of every machine */
    Q2EXPORT_CPU_AVX2 = 1,     /* AVX2, FMA, F16C */
    Q2EXPORT_CPU_AVX512 = 2,   /* AVX-512 F, BW, DQ, VL, VNNI: Ice Lake, Zen 4 and later */
    Q2EXPORT_CPU_AVX512_BF16 = 3 /* and BF16: Cooper Lake, Sapphire Rapids, Zen 4 and later */
};

/* One piece of work: calls of different indices are independent. */
typedef void (*q2export_cpu_task)(void* data, size_t index);

/* Where tasks run: calls task(data, i) once for each i < count, on any threads, and returns when all are done. */
typedef struct q2export_cpu_parallel_for {
    void (*run)(void* context, q2export_cpu_task task, void* data, size_t count);
    void* context;
} q2export_cpu_parallel_for;

Q2EXPORT_API int32_t q2export_cpu_abi_version(void);

/* What the last call of this thread that failed had to say; "" before any. Valid until the next failure. */
Q2EXPORT_API char const* q2export_cpu_last_error(void);

/* The instruction set in use: from the start the best that the machine has. */
Q2EXPORT_API q2export_cpu_isa q2export_cpu_selected_isa(void);

/* Use another, for tests and comparisons; not while other calls run. Q2EXPORT_UNSUPPORTED: the machine lacks it. */
Q2EXPORT_API q2export_status q2export_cpu_select_isa(q2export_cpu_isa isa);

/* What the products of a linear layer are made of. */
typedef int32_t q2export_cpu_activations;
enum {
    Q2EXPORT_CPU_ACTIVATIONS_FLOAT32 = 0, /* exact but for rounding */
    Q2EXPORT_CPU_ACTIVATIONS_INT8 = 1,    /* rounded block by block, scale = largest magnitude / 127; sums are integers */
    Q2EXPORT_CPU_ACTIVATIONS_BFLOAT16 = 2 /* rounded to nearest, ties to even; products are exact, sums are float32 */
};

/* ------------------------------------------------------------------ linear */

typedef struct q2export_cpu_linear_desc {
    int64_t rows;
    int64_t in_features;
    int64_t out_features;
    q2export_dtype weight_dtype;
    q2export_dtype bias_dtype;
    q2export_cpu_activations activations; /* float32, or over weights of bfloat16 also bfloat16 */
} q2export_cpu_linear_desc;

/*
 * output = input @ weight.T + bias; weights are widened exactly, sums are float32. With bfloat16 activations on
 * Q2EXPORT_CPU_AVX512_BF16, subnormal numbers (below 2^-126) are zero, in the input, the weights and the sums.
 *
 * input   float [rows, in_features]
 * weight  weight_dtype [out_features, in_features]
 * bias    bias_dtype [out_features]; may be NULL
 * output  float [rows, out_features]; no input
 */
Q2EXPORT_API q2export_status q2export_cpu_linear(q2export_cpu_linear_desc const* desc, float const* input,
    void const* weight, void const* bias, float* output, q2export_cpu_parallel_for const* parallel_for);

/* ------------------------------------------------------------------ quantized linear */

typedef struct q2export_cpu_quantized_linear_desc {
    int64_t rows;
    int64_t in_features; /* a multiple of block_size */
    int64_t out_features;
    int32_t bits;       /* 4 or 8 */
    int32_t block_size; /* 32, 64 or 128 */
    q2export_dtype bias_dtype;
    q2export_cpu_activations activations;
} q2export_cpu_quantized_linear_desc;

/*
 * output = input @ weight.T + bias, of weights (code - zero point) * scale in the packed form of
 * exporter/checkpoint/packed.py.
 *
 * input        float [rows, in_features]
 * codes        uint8 [out_features, in_features * bits / 8]; of two halves of a byte the low one is first
 * scales       float16 [out_features, in_features / block_size]
 * zero_points  uint8 [out_features, ceil(in_features / block_size * bits / 8)], packed as the codes; NULL: 8 or 128
 * bias         bias_dtype [out_features]; may be NULL
 * output       float [rows, out_features]; no input
 */
Q2EXPORT_API q2export_status q2export_cpu_quantized_linear(q2export_cpu_quantized_linear_desc const* desc,
    float const* input, void const* codes, void const* scales, void const* zero_points, void const* bias, float* output,
    q2export_cpu_parallel_for const* parallel_for);

/* ------------------------------------------------------------------ quantized gather */

typedef struct q2export_cpu_quantized_gather_desc {
    int64_t count;
    int64_t rows;
    int64_t columns;    /* a multiple of block_size */
    int32_t bits;       /* 4 or 8 */
    int32_t block_size; /* 32, 64 or 128 */
} q2export_cpu_quantized_gather_desc;

/*
 * output[i] = row indices[i] of weights in the packed form, Q2QuantizedGather; values are exact.
 *
 * indices  int64 [count], each from 0 to rows - 1
 * codes, scales, zero_points  those of q2export_cpu_quantized_linear, of [rows, columns]
 * output   float [count, columns]; no input
 */
Q2EXPORT_API q2export_status q2export_cpu_quantized_gather(q2export_cpu_quantized_gather_desc const* desc,
    int64_t const* indices, void const* codes, void const* scales, void const* zero_points, float* output,
    q2export_cpu_parallel_for const* parallel_for);

/* ------------------------------------------------------------------ attention on the KV cache */

typedef struct q2export_cpu_attention_desc {
    int64_t batch;
    int64_t sequence; /* new tokens of the longest row */
    int64_t capacity;
    int32_t num_heads;
    int32_t num_kv_heads; /* divides num_heads */
    int32_t head_dim;     /* even, at most 256 */
    int32_t sliding_window; /* newest keys that a query sees, itself included; 0: all */
    q2export_dtype cache_dtype;
    float scale;            /* on the scores before the softmax */
    float attention_factor; /* on cos and sin; only with inv_freq */
} q2export_cpu_attention_desc;

/*
 * Rotates queries and keys, appends keys and values to the cache, attends: Q2RotaryAttention, or Q2GroupQueryAttention
 * without inv_freq. Row b holds past_lengths[b] tokens and gets query_lengths[b] more; tokens of the batch beyond that are
 * padding, whose output is zero. Positions of the cache beyond both are neither read nor written.
 *
 * query         float [batch, sequence, num_heads, head_dim]
 * key, value    float [batch, sequence, num_kv_heads, head_dim]
 * past_lengths, query_lengths  int64 [batch]; their sum is at most capacity
 * inv_freq      float [head_dim / 2], radians per position; NULL: nothing is rotated
 * key_cache, value_cache  cache_dtype [batch, num_kv_heads, capacity, head_dim], updated in place
 * output        float [batch, sequence, num_heads, head_dim]; no input
 */
Q2EXPORT_API q2export_status q2export_cpu_attention(q2export_cpu_attention_desc const* desc, float const* query,
    float const* key, float const* value, int64_t const* past_lengths, int64_t const* query_lengths,
    float const* inv_freq, void* key_cache, void* value_cache, float* output,
    q2export_cpu_parallel_for const* parallel_for);

/* ------------------------------------------------------------------ SwiGLU */

/* output = silu(gate) * up, element by element, Q2SwiGLU: float [count] each; output may be gate or up. */
Q2EXPORT_API q2export_status q2export_cpu_swiglu(int64_t count, float const* gate, float const* up, float* output,
    q2export_cpu_parallel_for const* parallel_for);

/* ------------------------------------------------------------------ mixture of experts */

typedef struct q2export_cpu_moe_desc {
    int64_t num_tokens;
    int64_t hidden_size;
    int64_t intermediate_size;
    int32_t num_experts;
    int32_t top_k;
    int32_t norm_topk_prob; /* 1: the chosen probabilities are divided by their sum */
    q2export_dtype weight_dtype;
    q2export_cpu_activations activations; /* as in q2export_cpu_linear_desc */
} q2export_cpu_moe_desc;

/*
 * Mixture of SwiGLU experts, Q2MoE: softmax over all router logits, the top_k largest logits, their experts alone, weighted
 * sum. Of equal logits the lower expert's is taken. Activations of bfloat16 are what gate and up multiply, and the SwiGLU
 * that down multiplies; routing, SwiGLU and the weighted sum are float32.
 *
 * hidden         float [num_tokens, hidden_size]
 * router_logits  float [num_tokens, num_experts]
 * gate, up       weight_dtype [intermediate_size, hidden_size], one pointer per expert
 * down           weight_dtype [hidden_size, intermediate_size], one pointer per expert
 * output         float [num_tokens, hidden_size]; no input
 */
Q2EXPORT_API q2export_status q2export_cpu_moe(q2export_cpu_moe_desc const* desc, float const* hidden,
    float const* router_logits, void const* const* gate, void const* const* up, void const* const* down, float* output,
    q2export_cpu_parallel_for const* parallel_for);

typedef struct q2export_cpu_quantized_moe_desc {
    int64_t num_tokens;
    int64_t hidden_size;       /* a multiple of block_size */
    int64_t intermediate_size; /* a multiple of block_size */
    int32_t num_experts;
    int32_t top_k;
    int32_t norm_topk_prob; /* as in q2export_cpu_moe_desc */
    int32_t bits;           /* 4 or 8 */
    int32_t block_size;     /* 32, 64 or 128 */
    q2export_cpu_activations activations;
} q2export_cpu_quantized_moe_desc;

/*
 * The same of packed weights, Q2QuantizedMoE. Codes, scales and zero points of each matrix are those of
 * q2export_cpu_quantized_linear, one expert after the other; rows of gate_up alternate: gate 0, up 0, gate 1, ...
 *
 * hidden         float [num_tokens, hidden_size]
 * router_logits  float [num_tokens, num_experts]
 * gate_up        uint8 [num_experts, 2 * intermediate_size, hidden_size * bits / 8]
 * gate_up_scale  float16 [num_experts, 2 * intermediate_size, hidden_size / block_size]
 * gate_up_zero_point  uint8 [num_experts, 2 * intermediate_size, ceil(hidden_size / block_size * bits / 8)]; may be NULL
 * down           uint8 [num_experts, hidden_size, intermediate_size * bits / 8]
 * down_scale     float16 [num_experts, hidden_size, intermediate_size / block_size]
 * down_zero_point  uint8 [num_experts, hidden_size, ceil(intermediate_size / block_size * bits / 8)]; may be NULL
 * output         float [num_tokens, hidden_size]; no input
 */
Q2EXPORT_API q2export_status q2export_cpu_quantized_moe(q2export_cpu_quantized_moe_desc const* desc,
    float const* hidden, float const* router_logits, void const* gate_up, void const* gate_up_scale,
    void const* gate_up_zero_point, void const* down, void const* down_scale, void const* down_zero_point,
    float* output, q2export_cpu_parallel_for const* parallel_for);

#ifdef __cplusplus
}
#endif

#endif
