// Every op of the library for CUDA, one per source; each for tensors of float32, float16 and bfloat16.
#pragma once

#include <array>

#include "launch.h"
#include "op.h"

namespace q2export::onnxruntime
{

using OpsOfTypes = std::array<OrtCustomOp const*, 3>;

OpsOfTypes cuda_rotary_attention_ops();
OpsOfTypes cuda_group_query_attention_ops();
OpsOfTypes cuda_moe_ops();
OpsOfTypes cuda_quantized_moe_ops();

// The three instances of Kernel<element type>.
template <template <ONNXTensorElementDataType> class Kernel>
OpsOfTypes ops_of_types()
{
    static Op<Kernel<ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT>> const float32;
    static Op<Kernel<ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16>> const float16;
    static Op<Kernel<ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16>> const bfloat16;
    return {&float32, &float16, &bfloat16};
}

} // namespace q2export::onnxruntime
