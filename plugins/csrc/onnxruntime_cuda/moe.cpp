// Q2MoE on the GPU: a mixture of experts over weights in place, one input per matrix.
#include "moe_weights.h"
#include "ops.h"

namespace q2export::onnxruntime
{
namespace
{

constexpr size_t kFirstExpert = 2;

template <ONNXTensorElementDataType T>
class CudaMoe
{
    static constexpr Operand kInputs[] = {
        {"hidden", T},        // [T, H]
        {"router_logits", T}, // [T, E]
        {"experts", ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, INPUT_OUTPUT_VARIADIC},
    };
    static constexpr Operand kOutputs[] = {
        {"output", T}, // [T, H]
    };

public:
    static constexpr Signature kSignature{"Q2MoE", {kInputs, 3}, {kOutputs, 1}};
    static constexpr char const* kProvider = kDeviceProvider;

    explicit CudaMoe(Attributes const& attributes)
        : num_experts_(attributes.integer("num_experts"))
        , top_k_(attributes.integer("top_k"))
        , norm_topk_prob_(attributes.integer("norm_topk_prob"))
    {
        if (num_experts_ < 1 || num_experts_ > 4096)
        {
            throw Refusal("num_experts is " + std::to_string(num_experts_) + ", expected 1 .. 4096");
        }
        // Initializers keep their place on the GPU: they are looked at once.
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
        Tensor const hidden = call.input(0, "hidden", T);
        Tensor const logits = call.input(1, "router_logits", T);
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
        if (weights.dtype != float_dtype(hidden, "hidden"))
        {
            throw Refusal("the experts have another element type than hidden");
        }
        q2export_moe_desc desc{};
        desc.num_tokens = hidden.shape[0];
        desc.hidden_size = static_cast<int32_t>(weights.hidden_size);
        desc.intermediate_size = static_cast<int32_t>(weights.intermediate_size);
        desc.num_experts = static_cast<int32_t>(num_experts_);
        desc.top_k = static_cast<int32_t>(top_k_);
        desc.norm_topk_prob = static_cast<int32_t>(norm_topk_prob_);
        desc.dtype = weights.dtype;
        size_t bytes = 0;
        Call::check(q2export_moe_workspace_size(&desc, &bytes));
        void* const output = call.output(0, hidden.shape);
        Launch const launch(call, 0, bytes);
        Call::check(q2export_moe(&desc, hidden.data, logits.data, weights.of[0].data(), weights.of[1].data(),
            weights.of[2].data(), output, launch.workspace(), bytes, launch.stream()));
    }

private:
    size_t inputs() const
    {
        return static_cast<size_t>(num_experts_) * std::size(kMoeMatrices);
    }

    int64_t num_experts_;
    int64_t top_k_;
    int64_t norm_topk_prob_;
    MoeWeights constant_; // empty where some of them are not
};

} // namespace

OpsOfTypes cuda_moe_ops()
{
    return ops_of_types<CudaMoe>();
}

} // namespace q2export::onnxruntime
