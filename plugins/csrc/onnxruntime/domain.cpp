#include "domain.h"

#include <mutex>
#include <string>

namespace q2export::onnxruntime
{
namespace
{

constexpr char kDomain[] = "q2export";

OrtStatus* domain_of(OrtApi const& api, std::vector<OrtCustomOp const*> const& ops, OrtCustomOpDomain** out)
{
    static std::mutex mutex;
    static OrtCustomOpDomain* made = nullptr;
    std::lock_guard<std::mutex> const lock(mutex);
    if (made == nullptr)
    {
        OrtCustomOpDomain* domain = nullptr;
        OrtStatus* status = api.CreateCustomOpDomain(kDomain, &domain);
        for (OrtCustomOp const* op : ops)
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

OrtStatus* register_ops(OrtSessionOptions* options, OrtApiBase const& base, std::vector<OrtCustomOp const*> const& ops,
    char const* library)
{
    OrtApi const* const api = base.GetApi(kOrtApiVersion);
    if (api == nullptr)
    {
        // Any version has CreateStatus, and in this place.
        std::string const text = std::string("q2export: ONNX Runtime ") + base.GetVersionString() + " is too old for "
            + library + ", which needs 1.18";
        return base.GetApi(1)->CreateStatus(ORT_FAIL, text.c_str());
    }
    OrtCustomOpDomain* domain = nullptr;
    OrtStatus* const status = domain_of(*api, ops, &domain);
    return status != nullptr ? status : api->AddCustomOpDomain(options, domain);
}

} // namespace q2export::onnxruntime
