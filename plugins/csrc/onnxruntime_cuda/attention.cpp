// Q2RotaryAttention and Q2GroupQueryAttention on the GPU; in place where past and present are one buffer.
#include "ops.h"

namespace q2export::onnxruntime
{
namespace
{

constexpr auto L = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;

// Signatures as in q2export/contracts/opspec.py, for tensors of one element type.
template <ONNXTensorElementDataType T>
struct Signatures
{
    static constexpr Operand kInputs[] = {
        {"query", T},                                          // [B, S, Hq, D]
        {"key", T},                                            // [B, S, Hkv, D]
        {"value", T},                                          // [B, S, Hkv, D]
        {"past_key", T},                                       // [B, Hkv, C, D]
        {"past_value", T},                                     // [B, Hkv, C, D]
        {"past_lengths", L},                                   // [B]
        {"query_lengths", L},                                  // [B]
        {"inv_freq", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT},     // [D/2]
    };
    static constexpr Operand kOutputs[] = {
        {"output", T},                                         // [B, S, Hq, D]
        {"present_key", T},                                    // [B, Hkv, C, D]
        {"present_value", T},
    };
    static constexpr Signature kRotary{"Q2RotaryAttention", {kInputs, 8}, {kOutputs, 3}};
    static constexpr Signature kPlain{"Q2GroupQueryAttention", {kInputs, 7}, {kOutputs, 3}};
};

template <ONNXTensorElementDataType T, bool kRotary>
class CudaAttention
{
public:
    static constexpr Signature kSignature = kRotary ? Signatures<T>::kRotary : Signatures<T>::kPlain;
    static constexpr char const* kProvider = kDeviceProvider;

    // Present reuses past's memory wherever nothing else needs it.
    static constexpr int kInPlace[2][2] = {{3, 1}, {4, 2}};

    explicit CudaAttention(Attributes const& attributes)
        : attention_factor_(kRotary ? attributes.real("attention_factor") : 1.0f)
    {
        desc_.num_heads = static_cast<int32_t>(attributes.integer("num_heads"));
        desc_.num_kv_heads = static_cast<int32_t>(attributes.integer("num_kv_heads"));
        desc_.sliding_window = static_cast<int32_t>(attributes.integer("sliding_window"));
        desc_.scale = attributes.real("scale");
    }

    void run(Call const& call) const
    {
        Tensor const query = call.input(0, "query", T);
        Tensor const key = call.input(1, "key", T);
        Tensor const value = call.input(2, "value", T);
        Tensor const past_key = call.input(3, "past_key", T);
        Tensor const past_value = call.input(4, "past_value", T);
        Tensor const past_lengths = call.input(5, "past_lengths", L);
        Tensor const query_lengths = call.input(6, "query_lengths", L);
        q2export_attention_desc desc = desc_;
        expect_shape(query, "query", {-1, -1, desc.num_heads, -1});
        desc.batch = query.shape[0];
        desc.sequence = query.shape[1];
        int64_t const head_dim = query.shape[3];
        desc.head_dim = static_cast<int32_t>(head_dim);
        expect_shape(key, "key", {desc.batch, desc.sequence, desc.num_kv_heads, head_dim});
        expect_shape(value, "value", {desc.batch, desc.sequence, desc.num_kv_heads, head_dim});
        expect_shape(past_key, "past_key", {desc.batch, desc.num_kv_heads, -1, head_dim});
        desc.capacity = past_key.shape[2];
        expect_shape(past_value, "past_value", {desc.batch, desc.num_kv_heads, desc.capacity, head_dim});
        expect_shape(past_lengths, "past_lengths", {desc.batch});
        expect_shape(query_lengths, "query_lengths", {desc.batch});
        desc.dtype = float_dtype(query, "query");
        q2export_attention_tensors const tensors{query.data, key.data, value.data, past_key.data, past_value.data,
            static_cast<int64_t const*>(past_lengths.data), static_cast<int64_t const*>(query_lengths.data),
            call.output(0, query.shape), call.output(1, past_key.shape), call.output(2, past_value.shape)};
        launch(call, desc, tensors, head_dim);
    }

private:
    void launch(Call const& call, q2export_attention_desc const& desc, q2export_attention_tensors const& tensors,
        int64_t head_dim) const
    {
        size_t bytes = 0;
        if constexpr (kRotary)
        {
            Tensor const inv_freq = call.input(7, "inv_freq", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
            expect_shape(inv_freq, "inv_freq", {head_dim / 2});
            Call::check(q2export_rotary_attention_workspace_size(&desc, &bytes));
            Launch const launch(call, 0, bytes);
            Call::check(q2export_rotary_attention(&desc, &tensors, static_cast<float const*>(inv_freq.data),
                attention_factor_, launch.workspace(), bytes, launch.stream()));
        }
        else
        {
            Call::check(q2export_group_query_attention_workspace_size(&desc, &bytes));
            Launch const launch(call, 0, bytes);
            Call::check(
                q2export_group_query_attention(&desc, &tensors, launch.workspace(), bytes, launch.stream()));
        }
    }

    q2export_attention_desc desc_{};
    float attention_factor_;
};

template <ONNXTensorElementDataType T>
using RotaryAttention = CudaAttention<T, true>;

template <ONNXTensorElementDataType T>
using GroupQueryAttention = CudaAttention<T, false>;

} // namespace

OpsOfTypes cuda_rotary_attention_ops()
{
    return ops_of_types<RotaryAttention>();
}

OpsOfTypes cuda_group_query_attention_ops()
{
    return ops_of_types<GroupQueryAttention>();
}

} // namespace q2export::onnxruntime
