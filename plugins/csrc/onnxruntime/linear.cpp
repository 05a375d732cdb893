// Q2Linear: input @ weight.T + bias over weights in place.
#include "ops.h"

namespace q2export::onnxruntime
{
namespace
{

constexpr Operand kInputs[] = {
    {"input", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT},                            // [..., in]
    {"weight", ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED},                       // [out, in]
    {"bias", ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, INPUT_OUTPUT_OPTIONAL},  // [out]
};
constexpr Operand kOutputs[] = {
    {"output", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT}, // [..., out]
};

class Linear
{
public:
    static constexpr Signature kSignature{"Q2Linear", {kInputs, 3}, {kOutputs, 1}};

    explicit Linear(Attributes const& attributes)
        : activations_(attributes.flag("bfloat16_activations") ? Q2EXPORT_CPU_ACTIVATIONS_BFLOAT16
                                                               : Q2EXPORT_CPU_ACTIVATIONS_FLOAT32)
    {
    }

    void run(Call const& call) const
    {
        Tensor const input = call.input(0, "input", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
        Tensor const weight = call.input(1, "weight");
        Tensor const bias = call.input_count() > 2 ? call.input(2, "bias") : Tensor{};
        if (input.shape.rank == 0)
        {
            throw Refusal("input is a scalar, expected [..., in]");
        }
        q2export_cpu_linear_desc desc{};
        desc.activations = activations_;
        desc.weight_dtype = float_dtype(weight, "weight");
        expect_shape(weight, "weight", {-1, input.shape.last()});
        desc.rows = input.shape.rows();
        desc.in_features = input.shape.last();
        desc.out_features = weight.shape[0];
        if (bias.present())
        {
            desc.bias_dtype = float_dtype(bias, "bias");
            expect_shape(bias, "bias", {desc.out_features});
        }
        Shape output = input.shape;
        output.dims[output.rank - 1] = desc.out_features;
        Call::check(q2export_cpu_linear(&desc, static_cast<float const*>(input.data), weight.data,
            bias.present() ? bias.data : nullptr, static_cast<float*>(call.output(0, output)), call.threads()));
    }

private:
    q2export_cpu_activations activations_;
};

} // namespace

OrtCustomOp const& linear_op()
{
    static Op<Linear> const op;
    return op;
}

} // namespace q2export::onnxruntime
