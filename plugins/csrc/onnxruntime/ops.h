// Every op of the library, one per source.
#pragma once

#include <array>

#include "op.h"

namespace q2export::onnxruntime
{

OrtCustomOp const& linear_op();
OrtCustomOp const& quantized_linear_op();
OrtCustomOp const& quantized_gather_op();
OrtCustomOp const& swiglu_op();
OrtCustomOp const& moe_op();
OrtCustomOp const& quantized_moe_op();

// For caches of float32, float16 and bfloat16.
std::array<OrtCustomOp const*, 3> rotary_attention_ops();
std::array<OrtCustomOp const*, 3> group_query_attention_ops();

} // namespace q2export::onnxruntime
