// Q2MoE: a mixture of experts over weights in place, one input per matrix.
#include "moe_weights.h"
#include "ops.h"

namespace q2export::onnxruntime
{
namespace
{

constexpr Operand kInputs[] = {
    {"hidden", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT},        // [T, H]
    {"router_logits", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT}, // [T, E]
    // gate_0 [I, H], up_0 [I, H], down_0 [H, I], gate_1, ...
    {"experts", ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, INPUT_OUTPUT_VARIADIC},
};
constexpr Operand kOutputs[] = {
    {"output", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT}, // [T, H]
};
constexpr size_t kFirstExpert = 2;
class Moe
{
public:
    static constexpr Signature kSignature{"Q2MoE", {kInputs, 3}, {kOutputs, 1}};

    explicit Moe(Attributes const& attributes)
        : num_experts_(attributes.integer("num_experts"))
        , top_k_(attributes.integer("top_k"))
        , norm_topk_prob_(attributes.integer("norm_topk_prob"))
        , activations_(attributes.flag("bfloat16_activations", false) ? Q2EXPORT_CPU_ACTIVATIONS_BFLOAT16
                                                                      : Q2EXPORT_CPU_ACTIVATIONS_FLOAT32)
    {
        if (num_experts_ < 1 || num_experts_ > 4096)
        {
            throw Refusal("num_experts is " + std::to_string(num_experts_) + ", expected 1 .. 4096");
        }
        // Initializers keep their place: they are looked at once.
        for (size_t i = 0; i < inputs(); ++i)
        {
            Tensor const tensor = attributes.constant_input(kFirstExpert + i, "expert");
            if (!tensor.present())
            {
                constant_ = {};
                return;
            }
            constant_.add(tensor);
        }
    }

    void run(Call const& call) const
    {
        Tensor const hidden = call.input(0, "hidden", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
        Tensor const logits = call.input(1, "router_logits", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
        if (call.input_count() != kFirstExpert + inputs())
        {
            throw Refusal("there are " + std::to_string(call.input_count()) + " inputs, expected "
                + std::to_string(kFirstExpert + inputs()) + " for " + std::to_string(num_experts_) + " experts");
        }
        MoeWeights given;
        for (size_t i = 0; constant_.of[0].empty() && i < inputs(); ++i)
        {
            given.add(call.input(kFirstExpert + i, "expert"));
        }
        MoeWeights const& weights = constant_.of[0].empty() ? given : constant_;
        expect_shape(hidden, "hidden", {-1, weights.hidden_size});
        expect_shape(logits, "router_logits", {hidden.shape[0], num_experts_});
        q2export_cpu_moe_desc const desc{hidden.shape[0], weights.hidden_size, weights.intermediate_size,
            static_cast<int32_t>(num_experts_), static_cast<int32_t>(top_k_), static_cast<int32_t>(norm_topk_prob_),
            weights.dtype, activations_};
        Call::check(q2export_cpu_moe(&desc, static_cast<float const*>(hidden.data),
            static_cast<float const*>(logits.data), weights.of[0].data(), weights.of[1].data(), weights.of[2].data(),
            static_cast<float*>(call.output(0, hidden.shape)), call.threads()));
    }

private:
    size_t inputs() const
    {
        return static_cast<size_t>(num_experts_) * std::size(kMoeMatrices);
    }

    int64_t num_experts_;
    int64_t top_k_;
    int64_t norm_topk_prob_;
    q2export_cpu_activations activations_;
    MoeWeights constant_; // empty where some of them are not
};

} // namespace

OrtCustomOp const& moe_op()
{
    static Op<Moe> const op;
    return op;
}

} // namespace q2export::onnxruntime
