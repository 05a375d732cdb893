/*
 * C ABI of the CUDA kernels of q2export: one function per op of q2export/contracts/opspec.py, which defines their meaning.
 *
 * Every function
 *   - takes device pointers to dense row-major tensors, sizes and a stream; knows nothing of torch or TensorRT;
 *   - queues its work on the stream and returns: it neither synchronises nor allocates, so that it can be
 *     captured in a CUDA graph; what it needs in between is the caller's workspace;
 *   - returns a status; for any but Q2EXPORT_SUCCESS, q2export_last_error() says which argument was wrong, what
 *     was expected and what was found. Nothing is queued then, except after Q2EXPORT_CUDA_ERROR.
 *
 * Workspace sizes depend on the description alone: the queries touch no device and can be asked without one.
 * Their result never falls when batch, sequence, capacity or num_tokens grows, so the size for the largest
 * shapes serves all smaller ones. A workspace is aligned to Q2EXPORT_WORKSPACE_ALIGNMENT bytes, belongs to
 * one call at a time, and needs no initialisation. Where the size is 0 it may be NULL.
 *
 * Tensors are aligned to 16 bytes where their type is float16 or bfloat16 and the sizes are those of the fast kernels
 * (docs/kernels.md): a misaligned one is refused, not left to slow kernels. Others are aligned to their elements.
 *
 * Callers check that q2export_kernels_abi_version() equals Q2EXPORT_KERNELS_ABI_VERSION before any other call.
 * C99 and C++17.
 */
#ifndef Q2EXPORT_KERNELS_H
#define Q2EXPORT_KERNELS_H

#include <stddef.h>
#include <stdint.h>

/* Raised whenever a signature, a struct or a meaning below changes. */
#define Q2EXPORT_KERNELS_ABI_VERSION 2

#define Q2EXPORT_WORKSPACE_ALIGNMENT 256

/* Largest head_dim of the attention functions. */
#define Q2EXPORT_MAX_HEAD_DIM 256

#if defined(_WIN32)
#define Q2EXPORT_API __declspec(dllexport)
#else
#define Q2EXPORT_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef int32_t q2export_status;
enum {
    Q2EXPORT_SUCCESS = 0,
    Q2EXPORT_INVALID_ARGUMENT = 1,    /* a null pointer, or a size or attribute out of its range */
    Q2EXPORT_UNSUPPORTED = 2,         /* valid, but these kernels cannot do it */
    Q2EXPORT_WORKSPACE_TOO_SMALL = 3, /* smaller than the workspace query says, missing or misaligned */
    Q2EXPORT_CUDA_ERROR = 4           /* the launch failed */
};

/* Element type of the tensors marked T below. */
typedef int32_t q2export_dtype;
enum {
    Q2EXPORT_FLOAT32 = 0,
    Q2EXPORT_FLOAT16 = 1,
    Q2EXPORT_BFLOAT16 = 2
};

/* A cudaStream_t, without the CUDA headers. */
typedef void* q2export_stream;

Q2EXPORT_API int32_t q2export_kernels_abi_version(void);

/* Name of a status, e.g. "invalid argument"; never NULL. */
Q2EXPORT_API char const* q2export_status_string(q2export_status status);

/* What the last call of this thread that failed had to say; "" before any. Valid until the next failure. */
Q2EXPORT_API char const* q2export_last_error(void);

/* ------------------------------------------------------------------ Q2RotaryEmbedding */

typedef struct q2export_rotary_desc {
    int64_t batch;
    int64_t sequence;
    int32_t num_heads;
    int32_t head_dim; /* even */
    q2export_dtype dtype;
    float attention_factor; /* on cos and sin */
} q2export_rotary_desc;

Q2EXPORT_API q2export_status q2export_rotary_embedding_workspace_size(
    q2export_rotary_desc const* desc, size_t* bytes);

/*
 * x, y          T [batch, sequence, num_heads, head_dim]; may be the same buffer
 * position_ids  int64 [batch, sequence]
 * inv_freq      float [head_dim / 2], radians per position
 */
Q2EXPORT_API q2export_status q2export_rotary_embedding(q2export_rotary_desc const* desc, void const* x,
    int64_t const* position_ids, float const* inv_freq, void* y, void* workspace, size_t workspace_bytes,
    q2export_stream stream);

/* ------------------------------------------- Q2GroupQueryAttention and Q2RotaryAttention */

typedef struct q2export_attention_desc {
    int64_t batch;
    int64_t sequence; /* new tokens of the longest row */
    int64_t capacity; /* positions of the cache */
    int32_t num_heads;
    int32_t num_kv_heads; /* divides num_heads */
    int32_t head_dim;     /* at most Q2EXPORT_MAX_HEAD_DIM; even for Q2RotaryAttention */
    int32_t sliding_window; /* newest keys a query sees, itself included; 0 = all */
    q2export_dtype dtype;
    float scale; /* on the scores, before the softmax */
} q2export_attention_desc;

/*
 * query, output           T [batch, sequence, num_heads, head_dim]
 * key, value              T [batch, sequence, num_kv_heads, head_dim]
 * past_*, present_*       T [batch, num_kv_heads, capacity, head_dim]
 * past_lengths            int64 [batch], tokens in the cache; 0 .. capacity - query_lengths
 * query_lengths           int64 [batch], tokens of the row to append; 0 .. sequence
 *
 * present_key is past_key and present_value is past_value where the cache is updated in place; given other
 * buffers, the cache is copied first. No other two buffers may overlap. Row b's first query_lengths[b] tokens
 * are written at past_lengths[b] and on. The output of the tokens beyond them is zero. Lengths are read on
 * the device and cannot be refused; lengths out of range never lead to an access outside the buffers: tokens
 * that have no place in the cache are dropped.
 */
typedef struct q2export_attention_tensors {
    void const* query;
    void const* key;
    void const* value;
    void const* past_key;
    void const* past_value;
    int64_t const* past_lengths;
    int64_t const* query_lengths;
    void* output;
    void* present_key;
    void* present_value;
} q2export_attention_tensors;

Q2EXPORT_API q2export_status q2export_group_query_attention_workspace_size(
    q2export_attention_desc const* desc, size_t* bytes);

Q2EXPORT_API q2export_status q2export_group_query_attention(q2export_attention_desc const* desc,
    q2export_attention_tensors const* tensors, void* workspace, size_t workspace_bytes, q2export_stream stream);

Q2EXPORT_API q2export_status q2export_rotary_attention_workspace_size(
    q2export_attention_desc const* desc, size_t* bytes);

/*
 * Token s of row b is rotated to position past_lengths[b] + s, query and key, before it is appended and attends.
 *
 * inv_freq          float [head_dim / 2], radians per position
 * attention_factor  on cos and sin
 */
Q2EXPORT_API q2export_status q2export_rotary_attention(q2export_attention_desc const* desc,
    q2export_attention_tensors const* tensors, float const* inv_freq, float attention_factor, void* workspace,
    size_t workspace_bytes, q2export_stream stream);

/* ------------------------------------------------------------------------------ Q2MoE */

typedef struct q2export_moe_desc {
    int64_t num_tokens;
    int32_t hidden_size;
    int32_t intermediate_size; /* of one expert */
    int32_t num_experts;
    int32_t top_k;          /* 1 .. num_experts */
    int32_t norm_topk_prob; /* 1: the chosen probabilities are divided by their sum; 0: they are not */
    q2export_dtype dtype;
} q2export_moe_desc;

Q2EXPORT_API q2export_status q2export_moe_workspace_size(q2export_moe_desc const* desc, size_t* bytes);

/*
 * hidden, output   T [num_tokens, hidden_size]
 * router_logits    T [num_tokens, num_experts]
 * gate, up         num_experts pointers each, to T [intermediate_size, hidden_size]
 * down             num_experts pointers, to T [hidden_size, intermediate_size]
 *
 * The three arrays of pointers lie in host memory and are read before the call returns; what they point to
 * lies on the device. Experts are ranked by logit, the lower index first among equals, so that the choice does
 * not depend on how exp rounds.
 */
Q2EXPORT_API q2export_status q2export_moe(q2export_moe_desc const* desc, void const* hidden,
    void const* router_logits, void const* const* gate, void const* const* up, void const* const* down,
    void* output, void* workspace, size_t workspace_bytes, q2export_stream stream);

/* --------------------------------------------------------------------- Q2QuantizedMoE */

typedef struct q2export_quantized_moe_desc {
    q2export_moe_desc moe;
    int32_t bits;       /* of a code: 4 or 8 */
    int32_t block_size; /* elements of a row that share a scale: 32, 64 or 128; divides both sizes of an expert */
} q2export_quantized_moe_desc;

Q2EXPORT_API q2export_status q2export_quantized_moe_workspace_size(
    q2export_quantized_moe_desc const* desc, size_t* bytes);

/*
 * hidden, output  T [num_tokens, hidden_size]
 * router_logits   T [num_tokens, num_experts]
 * gate_up         uint8 [num_experts, 2 * intermediate_size, hidden_size * bits / 8], rows of gate and up in turn
 * gate_up_scale   float16 [num_experts, 2 * intermediate_size, hidden_size / block_size]
 * down            uint8 [num_experts, hidden_size, intermediate_size * bits / 8]
 * down_scale      float16 [num_experts, hidden_size, intermediate_size / block_size]
 *
 * A weight is (code - 2^(bits - 1)) * scale; of two codes of 4 bits in a byte, the low one comes first. Products with
 * codes are exact, and scales are applied in float32: no weight is rounded. Experts are ranked as in q2export_moe.
 */
Q2EXPORT_API q2export_status q2export_quantized_moe(q2export_quantized_moe_desc const* desc, void const* hidden,
    void const* router_logits, void const* gate_up, void const* gate_up_scale, void const* down,
    void const* down_scale, void* output, void* workspace, size_t workspace_bytes, q2export_stream stream);

#ifdef __cplusplus
}
#endif

#endif /* Q2EXPORT_KERNELS_H */
