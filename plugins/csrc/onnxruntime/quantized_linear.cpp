// Q2QuantizedLinear: input @ weight.T + bias over packed weights in place.
#include "ops.h"

namespace q2export::onnxruntime
{
namespace
{

constexpr Operand kInputs[] = {
    {"input", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT},            // [..., in]
    {"weight", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8},           // codes [out, in * bits / 8]
    {"weight_scale", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16},   // [out, in / block_size]
    {"weight_zero_point", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, INPUT_OUTPUT_OPTIONAL}, // [out, ceil(blocks * bits / 8)]
    {"bias", ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, INPUT_OUTPUT_OPTIONAL},          // [out]
};
constexpr Operand kOutputs[] = {
    {"output", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT}, // [..., out]
};

class QuantizedLinear
{
public:
    static constexpr Signature kSignature{"Q2QuantizedLinear", {kInputs, 5}, {kOutputs, 1}};

    explicit QuantizedLinear(Attributes const& attributes)
        : bits_(attributes.integer("bits"))
        , block_size_(attributes.integer("block_size"))
        , int8_activations_(attributes.integer("int8_activations") != 0)
    {
        expect_packing(bits_, block_size_);
    }

    void run(Call const& call) const
    {
        Tensor const input = call.input(0, "input", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
        Tensor const weight = call.input(1, "weight");
        Tensor const scale = call.input(2, "weight_scale");
        size_t const count = call.input_count();
        Tensor const zero_point = count > 3 ? call.input(3, "weight_zero_point") : Tensor{};
        Tensor const bias = count > 4 ? call.input(4, "bias") : Tensor{};
        if (input.shape.rank == 0)
        {
            throw Refusal("input is a scalar, expected [..., in]");
        }
        int64_t const in_features = input.shape.last();
        int64_t const blocks = in_features / block_size_;
        expect_shape(weight, "weight", {-1, in_features * bits_ / 8});
        int64_t const out_features = weight.shape[0];
        expect_shape(scale, "weight_scale", {out_features, blocks});
        q2export_cpu_quantized_linear_desc desc{input.shape.rows(), in_features, out_features,
            static_cast<int32_t>(bits_), static_cast<int32_t>(block_size_), Q2EXPORT_FLOAT32,
            int8_activations_ ? Q2EXPORT_CPU_ACTIVATIONS_INT8 : Q2EXPORT_CPU_ACTIVATIONS_FLOAT32};
        if (zero_point.present())
        {
            expect_shape(zero_point, "weight_zero_point", {out_features, (blocks * bits_ + 7) / 8});
        }
        if (bias.present())
        {
            desc.bias_dtype = float_dtype(bias, "bias");
            expect_shape(bias, "bias", {out_features});
        }
        Shape output = input.shape;
        output.dims[output.rank - 1] = out_features;
        Call::check(q2export_cpu_quantized_linear(&desc, static_cast<float const*>(input.data), weight.data, scale.data,
            zero_point.present() ? zero_point.data : nullptr, bias.present() ? bias.data : nullptr,
            static_cast<float*>(call.output(0, output)), call.threads()));
    }

private:
    int64_t bits_;
    int64_t block_size_;
    bool int8_activations_;
};

} // namespace

OrtCustomOp const& quantized_linear_op()
{
    static Op<QuantizedLinear> const op;
    return op;
}

} // namespace q2export::onnxruntime
