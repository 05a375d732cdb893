// Q2RotaryAttention and Q2GroupQueryAttention: append to the KV cache, in place where past and present are one buffer.
#include <cstring>

#include "ops.h"

namespace q2export::onnxruntime
{
namespace
{

constexpr auto F = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto L = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;

// Signatures as in q2export/contracts/opspec.py, for a cache of one element type.
template <ONNXTensorElementDataType kCache>
struct Signatures
{
    static constexpr Operand kInputs[] = {
        {"query", F},             // [B, S, Hq, D]
        {"key", F},               // [B, S, Hkv, D]
        {"value", F},             // [B, S, Hkv, D]
        {"past_key", kCache},     // [B, Hkv, C, D]
        {"past_value", kCache},   // [B, Hkv, C, D]
        {"past_lengths", L},      // [B]
        {"query_lengths", L},     // [B]
        {"inv_freq", F},          // [D/2]
    };
    static constexpr Operand kOutputs[] = {
        {"output", F},            // [B, S, Hq, D]
        {"present_key", kCache},  // [B, Hkv, C, D]
        {"present_value", kCache},
    };
    static constexpr Signature kRotary{"Q2RotaryAttention", {kInputs, 8}, {kOutputs, 3}};
    static constexpr Signature kPlain{"Q2GroupQueryAttention", {kInputs, 7}, {kOutputs, 3}};
};

template <ONNXTensorElementDataType kCache, bool kRotary>
class Attention
{
public:
    static constexpr Signature kSignature = kRotary ? Signatures<kCache>::kRotary : Signatures<kCache>::kPlain;

    // Present reuses past's memory wherever nothing else needs it.
    static constexpr int kInPlace[2][2] = {{3, 1}, {4, 2}};

    explicit Attention(Attributes const& attributes)
    {
        desc_.num_heads = static_cast<int32_t>(attributes.integer("num_heads"));
        desc_.num_kv_heads = static_cast<int32_t>(attributes.integer("num_kv_heads"));
        desc_.sliding_window = static_cast<int32_t>(attributes.integer("sliding_window"));
        desc_.scale = attributes.real("scale");
        desc_.attention_factor = kRotary ? attributes.real("attention_factor") : 1.0f;
    }

    void run(Call const& call) const
    {
        Tensor const query = call.input(0, "query", F);
        Tensor const key = call.input(1, "key", F);
        Tensor const value = call.input(2, "value", F);
        Tensor const past_key = call.input(3, "past_key", kCache);
        Tensor const past_value = call.input(4, "past_value", kCache);
        Tensor const past_lengths = call.input(5, "past_lengths", L);
        Tensor const query_lengths = call.input(6, "query_lengths", L);
        expect_shape(query, "query", {-1, -1, desc_.num_heads, -1});
        int64_t const batch = query.shape[0];
        int64_t const sequence = query.shape[1];
        int64_t const head_dim = query.shape[3];
        expect_shape(key, "key", {batch, sequence, desc_.num_kv_heads, head_dim});
        expect_shape(value, "value", {batch, sequence, desc_.num_kv_heads, head_dim});
        expect_shape(past_key, "past_key", {batch, desc_.num_kv_heads, -1, head_dim});
        int64_t const capacity = past_key.shape[2];
        expect_shape(past_value, "past_value", {batch, desc_.num_kv_heads, capacity, head_dim});
        expect_shape(past_lengths, "past_lengths", {batch});
        expect_shape(query_lengths, "query_lengths", {batch});
        float const* inv_freq = nullptr;
        if (kRotary)
        {
            Tensor const tensor = call.input(7, "inv_freq", F);
            expect_shape(tensor, "inv_freq", {head_dim / 2});
            inv_freq = static_cast<float const*>(tensor.data);
        }
        q2export_cpu_attention_desc desc = desc_;
        desc.batch = batch;
        desc.sequence = sequence;
        desc.capacity = capacity;
        desc.head_dim = static_cast<int32_t>(head_dim);
        desc.cache_dtype = float_dtype(past_key, "past_key");
        void* const output = call.output(0, query.shape);
        void* const present_key = present(call, 1, past_key);
        void* const present_value = present(call, 2, past_value);
        Call::check(q2export_cpu_attention(&desc, static_cast<float const*>(query.data),
            static_cast<float const*>(key.data), static_cast<float const*>(value.data),
            static_cast<int64_t const*>(past_lengths.data), static_cast<int64_t const*>(query_lengths.data), inv_freq,
            present_key, present_value, static_cast<float*>(output), call.threads()));
    }

private:
    // The present cache, with the past's contents.
    static void* present(Call const& call, size_t index, Tensor const& past)
    {
        void* const data = call.output(index, past.shape);
        if (data != past.data)
        {
            size_t const bytes = kCache == F ? 4 : 2;
            std::memcpy(data, past.data, static_cast<size_t>(past.shape.rows() * past.shape.last()) * bytes);
        }
        return data;
    }

    q2export_cpu_attention_desc desc_{};
};

template <bool kRotary>
std::array<OrtCustomOp const*, 3> attention_ops()
{
    static Op<Attention<ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, kRotary>> const float32;
    static Op<Attention<ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, kRotary>> const float16;
    static Op<Attention<ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, kRotary>> const bfloat16;
    return {&float32, &float16, &bfloat16};
}

} // namespace

std::array<OrtCustomOp const*, 3> rotary_attention_ops()
{
    return attention_ops<true>();
}

std::array<OrtCustomOp const*, 3> group_query_attention_ops()
{
    return attention_ops<false>();
}

} // namespace q2export::onnxruntime
