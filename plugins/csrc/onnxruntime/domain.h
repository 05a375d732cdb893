// Registering ops with ONNX Runtime.
#pragma once

#include <vector>

#include "ort_abi.h"

namespace q2export::onnxruntime
{

// Adds ops to a session's options, in the domain q2export; `library` is what messages call this file. The domain is made
// of the ops of the first call and kept until the process ends: sessions refer to it.
OrtStatus* register_ops(OrtSessionOptions* options, OrtApiBase const& base, std::vector<OrtCustomOp const*> const& ops,
    char const* library);

} // namespace q2export::onnxruntime
