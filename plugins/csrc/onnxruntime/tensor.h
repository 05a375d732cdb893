// Values of ONNX Runtime as pointers and shapes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "ort_abi.h"
#include "q2export/kernels.h"

namespace q2export::onnxruntime
{

// What a node's user did wrong; becomes the status that ONNX Runtime reports.
struct Refusal : std::runtime_error
{
    using std::runtime_error::runtime_error;
};

// What ONNX Runtime itself reported; handed back to it as it is.
struct OrtFailure
{
    OrtStatus* status;
};

inline void check(OrtStatus* status)
{
    if (status != nullptr)
    {
        throw OrtFailure{status};
    }
}

constexpr size_t kMaxRank = 4;

struct Shape
{
    std::array<int64_t, kMaxRank> dims{};
    size_t rank = 0;

    int64_t operator[](size_t index) const
    {
        return dims[index];
    }

    int64_t last() const
    {
        return dims[rank - 1];
    }

    // Product of all sizes but the last.
    int64_t rows() const;

    std::string text() const;
};

struct Tensor
{
    void* data = nullptr;
    Shape shape;
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;

    bool present() const
    {
        return type != ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    }
};

// Throws Refusal for more than kMaxRank dimensions.
Tensor read_tensor(OrtApi const& api, OrtValue const* value, char const* name);

// float32, float16 or bfloat16; throws Refusal for others.
q2export_dtype float_dtype(Tensor const& tensor, char const* name);

// Throws Refusal unless the shape is this; -1 stands for any size.
void expect_shape(Tensor const& tensor, char const* name, std::initializer_list<int64_t> expected);
void expect_shape(Tensor const& tensor, char const* name, Shape const& expected);

// Throws Refusal unless packed weights may have these bits and blocks.
void expect_packing(int64_t bits, int64_t block_size);

} // namespace q2export::onnxruntime
