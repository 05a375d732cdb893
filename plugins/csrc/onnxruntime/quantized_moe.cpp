// Q2QuantizedMoE: a mixture of experts over packed weights in place, those of all experts in one tensor.
#include "ops.h"

namespace q2export::onnxruntime
{
namespace
{

constexpr Operand kInputs[] = {
    {"hidden", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT},            // [T, H]
    {"router_logits", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT},     // [T, E]
    {"gate_up", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8},           // codes [E, 2 I, H * bits / 8]: gate 0, up 0, gate 1, ...
    {"gate_up_scale", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16},   // [E, 2 I, H / block_size]
    {"down", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8},              // codes [E, H, I * bits / 8]
    {"down_scale", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16},      // [E, H, I / block_size]
    // [E, 2 I, ceil(H / block_size * bits / 8)] and [E, H, ceil(I / block_size * bits / 8)]
    {"gate_up_zero_point", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, INPUT_OUTPUT_OPTIONAL},
    {"down_zero_point", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, INPUT_OUTPUT_OPTIONAL},
};
constexpr Operand kOutputs[] = {
    {"output", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT}, // [T, H]
};

class QuantizedMoe
{
public:
    static constexpr Signature kSignature{"Q2QuantizedMoE", {kInputs, 8}, {kOutputs, 1}};

    explicit QuantizedMoe(Attributes const& attributes)
        : num_experts_(attributes.integer("num_experts"))
        , top_k_(attributes.integer("top_k"))
        , norm_topk_prob_(attributes.integer("norm_topk_prob"))
        , bits_(attributes.integer("bits"))
        , block_size_(attributes.integer("block_size"))
        , int8_activations_(attributes.integer("int8_activations") != 0)
    {
        if (num_experts_ < 1 || num_experts_ > 4096)
        {
            throw Refusal("num_experts is " + std::to_string(num_experts_) + ", expected 1 .. 4096");
        }
        if (top_k_ < 1 || top_k_ > num_experts_)
        {
            throw Refusal("top_k is " + std::to_string(top_k_) + ", expected 1 .. " + std::to_string(num_experts_));
        }
        expect_packing(bits_, block_size_);
    }

    void run(Call const& call) const
    {
        Tensor const hidden = call.input(0, "hidden", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
        Tensor const logits = call.input(1, "router_logits", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
        Tensor const gate_up = call.input(2, "gate_up");
        Tensor const gate_up_scale = call.input(3, "gate_up_scale");
        Tensor const down = call.input(4, "down");
        Tensor const down_scale = call.input(5, "down_scale");
        size_t const count = call.input_count();
        Tensor const gate_up_points = count > 6 ? call.input(6, "gate_up_zero_point") : Tensor{};
        Tensor const down_points = count > 7 ? call.input(7, "down_zero_point") : Tensor{};
        expect_shape(hidden, "hidden", {-1, -1});
        int64_t const width = hidden.shape[1];
        expect_shape(logits, "router_logits", {hidden.shape[0], num_experts_});
        expect_shape(gate_up, "gate_up", {num_experts_, -1, width * bits_ / 8});
        int64_t const inner = gate_up.shape[1] / 2;
        expect_matrix("gate_up", gate_up, gate_up_scale, gate_up_points, 2 * inner, width);
        expect_matrix("down", down, down_scale, down_points, width, inner);
        q2export_cpu_quantized_moe_desc const desc{hidden.shape[0], width, inner, static_cast<int32_t>(num_experts_),
            static_cast<int32_t>(top_k_), static_cast<int32_t>(norm_topk_prob_), static_cast<int32_t>(bits_),
            static_cast<int32_t>(block_size_),
            int8_activations_ ? Q2EXPORT_CPU_ACTIVATIONS_INT8 : Q2EXPORT_CPU_ACTIVATIONS_FLOAT32};
        Call::check(q2export_cpu_quantized_moe(&desc, static_cast<float const*>(hidden.data),
            static_cast<float const*>(logits.data), gate_up.data, gate_up_scale.data, gate_up_points.data, down.data,
            down_scale.data, down_points.data, static_cast<float*>(call.output(0, hidden.shape)), call.threads()));
    }

private:
    void expect_matrix(std::string const& name, Tensor const& codes, Tensor const& scale, Tensor const& zero_point,
        int64_t outs, int64_t ins) const
    {
        int64_t const blocks = ins / block_size_;
        expect_shape(codes, name.c_str(), {num_experts_, outs, ins * bits_ / 8});
        expect_shape(scale, (name + "_scale").c_str(), {num_experts_, outs, blocks});
        if (zero_point.present())
        {
            expect_shape(zero_point, (name + "_zero_point").c_str(), {num_experts_, outs, (blocks * bits_ + 7) / 8});
        }
    }

    int64_t num_experts_;
    int64_t top_k_;
    int64_t norm_topk_prob_;
    int64_t bits_;
    int64_t block_size_;
    bool int8_activations_;
};

} // namespace

OrtCustomOp const& quantized_moe_op()
{
    static Op<QuantizedMoe> const op;
    return op;
}

} // namespace q2export::onnxruntime
