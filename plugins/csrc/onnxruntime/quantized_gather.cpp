// Q2QuantizedGather: rows of packed weights in place, dequantized.
#include "ops.h"

namespace q2export::onnxruntime
{
namespace
{

constexpr Operand kInputs[] = {
    {"indices", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64},          // [...]
    {"weight", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8},           // codes [rows, columns * bits / 8]
    {"weight_scale", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16},   // [rows, columns / block_size]
    {"weight_zero_point", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, INPUT_OUTPUT_OPTIONAL}, // [rows, ceil(blocks * bits / 8)]
};
constexpr Operand kOutputs[] = {
    {"output", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT}, // [..., columns]
};

class QuantizedGather
{
public:
    static constexpr Signature kSignature{"Q2QuantizedGather", {kInputs, 4}, {kOutputs, 1}};

    explicit QuantizedGather(Attributes const& attributes)
        : bits_(attributes.integer("bits"))
        , block_size_(attributes.integer("block_size"))
    {
        expect_packing(bits_, block_size_);
    }

    void run(Call const& call) const
    {
        Tensor const indices = call.input(0, "indices", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
        Tensor const weight = call.input(1, "weight");
        Tensor const scale = call.input(2, "weight_scale");
        Tensor const zero_point = call.input_count() > 3 ? call.input(3, "weight_zero_point") : Tensor{};
        if (indices.shape.rank == kMaxRank)
        {
            throw Refusal("indices has shape " + indices.shape.text() + ", expected at most "
                + std::to_string(kMaxRank - 1) + " dimensions");
        }
        expect_shape(scale, "weight_scale", {-1, -1});
        int64_t const rows = scale.shape[0];
        int64_t const blocks = scale.shape[1];
        int64_t const columns = blocks * block_size_;
        expect_shape(weight, "weight", {rows, columns * bits_ / 8});
        if (zero_point.present())
        {
            expect_shape(zero_point, "weight_zero_point", {rows, (blocks * bits_ + 7) / 8});
        }
        Shape output = indices.shape;
        output.dims[output.rank++] = columns;
        q2export_cpu_quantized_gather_desc const desc{
            output.rows(), rows, columns, static_cast<int32_t>(bits_), static_cast<int32_t>(block_size_)};
        Call::check(q2export_cpu_quantized_gather(&desc, static_cast<int64_t const*>(indices.data), weight.data,
            scale.data, zero_point.present() ? zero_point.data : nullptr, static_cast<float*>(call.output(0, output)),
            call.threads()));
    }

private:
    int64_t bits_;
    int64_t block_size_;
};

} // namespace

OrtCustomOp const& quantized_gather_op()
{
    static Op<QuantizedGather> const op;
    return op;
}

} // namespace q2export::onnxruntime
