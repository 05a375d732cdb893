// Q2QuantizedMoE on the GPU: a mixture over packed experts in place, gate and up rows alternating.
#include "ops.h"

namespace q2export::onnxruntime
{
namespace
{

constexpr auto U = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
constexpr auto S = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
constexpr auto kCodes = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED; // uint8 or int32

// Bytes of an element of packed codes.
int64_t code_bytes(Tensor const& codes, char const* name)
{
    if (codes.type != U && codes.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32)
    {
        throw Refusal(std::string(name) + " has element type " + std::to_string(codes.type)
            + ", expected uint8 or int32");
    }
    return codes.type == U ? 1 : 4;
}

template <ONNXTensorElementDataType T>
class CudaQuantizedMoe
{
    static constexpr Operand kInputs[] = {
        {"hidden", T},                                       // [T, H]
        {"router_logits", T},                                // [T, E]
        {"gate_up", kCodes},                                 // codes [E, 2 I, H * bits / 8], or words of four bytes
        {"gate_up_scale", S},                                // [E, 2 I, H / block_size]
        {"down", kCodes},                                    // codes [E, H, I * bits / 8]
        {"down_scale", S},                                   // [E, H, I / block_size]
        {"gate_up_zero_point", U, INPUT_OUTPUT_OPTIONAL},    // which the kernels do not take
        {"down_zero_point", U, INPUT_OUTPUT_OPTIONAL},
    };
    static constexpr Operand kOutputs[] = {
        {"output", T}, // [T, H]
    };

public:
    static constexpr Signature kSignature{"Q2QuantizedMoE", {kInputs, 8}, {kOutputs, 1}};
    static constexpr char const* kProvider = kDeviceProvider;

    explicit CudaQuantizedMoe(Attributes const& attributes)
        : num_experts_(attributes.integer("num_experts"))
        , top_k_(attributes.integer("top_k"))
        , norm_topk_prob_(attributes.integer("norm_topk_prob"))
        , bits_(attributes.integer("bits"))
        , block_size_(attributes.integer("block_size"))
    {
        expect_packing(bits_, block_size_);
        if (attributes.flag("int8_activations", false))
        {
            throw Refusal("int8_activations is 1: the CUDA kernels round no activations");
        }
    }

    void run(Call const& call) const
    {
        Tensor const hidden = call.input(0, "hidden", T);
        Tensor const logits = call.input(1, "router_logits", T);
        Tensor const gate_up = call.input(2, "gate_up");
        Tensor const gate_up_scale = call.input(3, "gate_up_scale", S);
        Tensor const down = call.input(4, "down");
        Tensor const down_scale = call.input(5, "down_scale", S);
        for (size_t index = 6; index < call.input_count(); ++index)
        {
            if (call.input(index, kInputs[index].name).present())
            {
                std::string const name = kInputs[index].name;
                throw Refusal(name + " is given: the CUDA kernels take symmetric codes alone");
            }
        }
        expect_shape(hidden, "hidden", {-1, -1});
        int64_t const width = hidden.shape[1];
        expect_shape(logits, "router_logits", {hidden.shape[0], num_experts_});
        expect_shape(gate_up, "gate_up", {num_experts_, -1, width * bits_ / 8 / code_bytes(gate_up, "gate_up")});
        int64_t const inner = gate_up.shape[1] / 2;
        expect_shape(gate_up_scale, "gate_up_scale", {num_experts_, 2 * inner, width / block_size_});
        expect_shape(down, "down", {num_experts_, width, inner * bits_ / 8 / code_bytes(down, "down")});
        expect_shape(down_scale, "down_scale", {num_experts_, width, inner / block_size_});
        q2export_quantized_moe_desc desc{};
        desc.moe.num_tokens = hidden.shape[0];
        desc.moe.hidden_size = static_cast<int32_t>(width);
        desc.moe.intermediate_size = static_cast<int32_t>(inner);
        desc.moe.num_experts = static_cast<int32_t>(num_experts_);
        desc.moe.top_k = static_cast<int32_t>(top_k_);
        desc.moe.norm_topk_prob = static_cast<int32_t>(norm_topk_prob_);
        desc.moe.dtype = float_dtype(hidden, "hidden");
        desc.bits = static_cast<int32_t>(bits_);
        desc.block_size = static_cast<int32_t>(block_size_);
        size_t bytes = 0;
        Call::check(q2export_quantized_moe_workspace_size(&desc, &bytes));
        void* const output = call.output(0, hidden.shape);
        Launch const launch(call, 0, bytes);
        Call::check(q2export_quantized_moe(&desc, hidden.data, logits.data, gate_up.data, gate_up_scale.data,
            down.data, down_scale.data, output, launch.workspace(), bytes, launch.stream()));
    }

private:
    int64_t num_experts_;
    int64_t top_k_;
    int64_t norm_topk_prob_;
    int64_t bits_;
    int64_t block_size_;
};

} // namespace

OpsOfTypes cuda_quantized_moe_ops()
{
    return ops_of_types<CudaQuantizedMoe>();
}

} // namespace q2export::onnxruntime
