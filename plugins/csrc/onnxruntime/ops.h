// Every op of the library, one per source.
#pragma once

#include "op.h"

namespace q2export::onnxruntime
{

OrtCustomOp const& linear_op();
OrtCustomOp const& quantized_linear_op();

} // namespace q2export::onnxruntime
