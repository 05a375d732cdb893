// How ONNX Runtime finds the ops: SessionOptions.register_custom_ops_library calls RegisterCustomOps.
#include <mutex>
#include <string>
#include <vector>

#include "ops.h"

namespace q2export::onnxruntime
{
namespace
{

constexpr char kDomain[] = "q2export";

std::vector<OrtCustomOp const*> all_ops()
{
    std::vector<OrtCustomOp const*> ops{&linear_op(), &quantized_linear_op(), &quantized_gather_op(), &swiglu_op(),
        &moe_op(), &quantized_moe_op()};
    for (auto const& of_types : {rotary_attention_ops(), group_query_attention_ops()})
    {
        ops.insert(ops.end(), of_types.begin(), of_types.end());
    }
    return ops;
}

// The domain of all ops, made at the first call and kept until the process ends: sessions refer to it.
OrtStatus* domain_of_ops(OrtApi const& api, OrtCustomOpDomain** out)
{
    static std::mutex mutex;
    static OrtCustomOpDomain* made = nullptr;
    std::lock_guard<std::mutex> const lock(mutex);
    if (made == nullptr)
    {
        OrtCustomOpDomain* domain = nullptr;
        OrtStatus* status = api.CreateCustomOpDomain(kDomain, &domain);
        for (OrtCustomOp const* op : all_ops())
        {
            status = status == nullptr ? api.CustomOpDomain_Add(domain, op) : status;
        }
        if (status != nullptr)
        {
            api.ReleaseCustomOpDomain(domain);
            return status;
        }
        made = domain;
    }
    *out = made;
    return nullptr;
}

} // namespace
} // namespace q2export::onnxruntime

extern "C" Q2EXPORT_API OrtStatus* RegisterCustomOps(OrtSessionOptions* options, OrtApiBase const* base)
{
    using namespace q2export::onnxruntime;
    OrtApi const* const api = base->GetApi(kOrtApiVersion);
    if (api == nullptr)
    {
        // Any version has CreateStatus, and in this place.
        std::string const text = std::string("q2export: ONNX Runtime ") + base->GetVersionString()
            + " is too old for libq2export_onnxruntime.so, which needs 1.18";
        return base->GetApi(1)->CreateStatus(ORT_FAIL, text.c_str());
    }
    OrtCustomOpDomain* domain = nullptr;
    OrtStatus* const status = domain_of_ops(*api, &domain);
    return status != nullptr ? status : api->AddCustomOpDomain(options, domain);
}
