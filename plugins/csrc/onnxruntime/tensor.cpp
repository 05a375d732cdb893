#include "tensor.h"

namespace q2export::onnxruntime
{

int64_t Shape::rows() const
{
    int64_t product = 1;
    for (size_t axis = 0; axis + 1 < rank; ++axis)
    {
        product *= dims[axis];
    }
    return product;
}

std::string Shape::text() const
{
    std::string text = "[";
    for (size_t axis = 0; axis < rank; ++axis)
    {
        text += (axis == 0 ? "" : ", ") + std::to_string(dims[axis]);
    }
    return text + "]";
}

Tensor read_tensor(OrtApi const& api, OrtValue const* value, char const* name)
{
    Tensor tensor;
    if (value == nullptr)
    {
        return tensor;
    }
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api.GetTensorTypeAndShape(value, &info));
    OrtStatus* status = api.GetTensorElementType(info, &tensor.type);
    if (status == nullptr)
    {
        status = api.GetDimensionsCount(info, &tensor.shape.rank);
    }
    bool const fits = tensor.shape.rank <= kMaxRank;
    if (status == nullptr && fits)
    {
        status = api.GetDimensions(info, tensor.shape.dims.data(), tensor.shape.rank);
    }
    api.ReleaseTensorTypeAndShapeInfo(info);
    check(status);
    if (!fits)
    {
        throw Refusal(std::string(name) + " has " + std::to_string(tensor.shape.rank) + " dimensions, expected at most "
            + std::to_string(kMaxRank));
    }
    check(api.GetTensorMutableData(const_cast<OrtValue*>(value), &tensor.data));
    return tensor;
}

q2export_dtype float_dtype(Tensor const& tensor, char const* name)
{
    switch (tensor.type)
    {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return Q2EXPORT_FLOAT32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: return Q2EXPORT_FLOAT16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16: return Q2EXPORT_BFLOAT16;
    default:
        throw Refusal(std::string(name) + " has element type " + std::to_string(tensor.type)
            + ", expected float32, float16 or bfloat16");
    }
}

void expect_shape(Tensor const& tensor, char const* name, std::initializer_list<int64_t> expected)
{
    bool same = tensor.shape.rank == expected.size();
    size_t axis = 0;
    std::string text;
    for (int64_t const size : expected)
    {
        same = same && (size == -1 || tensor.shape[axis] == size);
        text += (axis++ == 0 ? "" : ", ") + (size == -1 ? "any" : std::to_string(size));
    }
    if (!same)
    {
        throw Refusal(std::string(name) + " has shape " + tensor.shape.text() + ", expected [" + text + "]");
    }
}

void expect_shape(Tensor const& tensor, char const* name, Shape const& expected)
{
    bool same = tensor.shape.rank == expected.rank;
    for (size_t axis = 0; same && axis < expected.rank; ++axis)
    {
        same = tensor.shape[axis] == expected[axis];
    }
    if (!same)
    {
        throw Refusal(std::string(name) + " has shape " + tensor.shape.text() + ", expected " + expected.text());
    }
}

void expect_packing(int64_t bits, int64_t block_size)
{
    if (bits != 4 && bits != 8)
    {
        throw Refusal("bits is " + std::to_string(bits) + ", expected 4 or 8");
    }
    if (block_size != 32 && block_size != 64 && block_size != 128)
    {
        throw Refusal("block_size is " + std::to_string(block_size) + ", expected 32, 64 or 128");
    }
}

} // namespace q2export::onnxruntime
