// How ONNX Runtime finds the ops of its CUDA provider: register_custom_ops_library calls RegisterCustomOps.
#include <vector>

#include "domain.h"
#include "ops.h"

namespace q2export::onnxruntime
{
namespace
{

std::vector<OrtCustomOp const*> all_ops()
{
    std::vector<OrtCustomOp const*> ops;
    for (OpsOfTypes const& of_types :
        {cuda_rotary_attention_ops(), cuda_group_query_attention_ops(), cuda_moe_ops(), cuda_quantized_moe_ops()})
    {
        ops.insert(ops.end(), of_types.begin(), of_types.end());
    }
    return ops;
}

} // namespace
} // namespace q2export::onnxruntime

extern "C" Q2EXPORT_API OrtStatus* RegisterCustomOps(OrtSessionOptions* options, OrtApiBase const* base)
{
    using namespace q2export::onnxruntime;
    return register_ops(options, *base, all_ops(), "libq2export_kernels.so");
}
