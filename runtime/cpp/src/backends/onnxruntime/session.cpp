#include "backends/onnxruntime/session.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <sched.h>
#include <vector>

#include "contract.h"
#include "error.h"
#include "package/files.h"

namespace q2export::runtime::ort
{
namespace
{

constexpr int kErrorSeverity = 3; // ONNX Runtime warns of every name it meets twice

struct TypeName
{
    ONNXTensorElementDataType type;
    char const* name;
};

constexpr TypeName kTypeNames[] = {
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, "float32"},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, "float16"},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, "bfloat16"},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, "int64"},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, "int32"},
};

int processors()
{
    cpu_set_t set;
    CPU_ZERO(&set);
    return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

// What ONNX Runtime says of its own calls with our arguments, none of which should fail.
void check(OrtApi const& api, OrtStatus* status)
{
    if (status != nullptr)
    {
        throw Error(Q2E_INTERNAL_ERROR, "ONNX Runtime: " + take_message(api, status));
    }
}

// "float32[*, 2, *, 64]"; * for a size that changes.
std::string shown_type(std::string const& dtype, std::vector<int64_t> const& shape)
{
    std::string text = dtype + "[";
    for (size_t i = 0; i < shape.size(); ++i)
    {
        text += (i == 0 ? "" : ", ") + (shape[i] < 0 ? std::string("*") : std::to_string(shape[i]));
    }
    return text + "]";
}

int64_t size_of(EngineInfo const& engine, char const* axis)
{
    std::string const name = axis;
    return name == "num_key_value_heads" ? engine.num_key_value_heads
        : name == "head_dim"             ? engine.head_dim
        : name == "vocab_size"           ? engine.vocab_size
                                         : -1;
}

using Types = std::map<std::string, std::string>; // by the name of an input or output

void expect(Types& types, StepTensor const& tensor, EngineInfo const& engine)
{
    std::vector<int64_t> shape;
    for (size_t i = 0; i < tensor.rank; ++i)
    {
        shape.push_back(size_of(engine, tensor.shape[i]));
    }
    bool const is_cache = std::strcmp(tensor.dtype, "kv_dtype") == 0;
    std::string const type = shown_type(is_cache ? engine.kv_dtype : tensor.dtype, shape);
    for (int64_t layer = 0; is_cache && layer < engine.num_hidden_layers; ++layer)
    {
        types[cache_name(tensor.name, layer)] = type;
    }
    if (!is_cache)
    {
        types[tensor.name] = type;
    }
}

bool is_output(char const* name)
{
    auto const same = [name](char const* other) { return std::strcmp(name, other) == 0; };
    return same(kLogits) || std::any_of(std::begin(kPresent), std::end(kPresent), same);
}

std::string found_type(OrtApi const& api, OrtTypeInfo const* info)
{
    OrtTensorTypeAndShapeInfo const* tensor = nullptr;
    check(api, api.CastTypeInfoToTensorInfo(info, &tensor));
    if (tensor == nullptr)
    {
        return "no tensor";
    }
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    size_t rank = 0;
    check(api, api.GetTensorElementType(tensor, &type));
    check(api, api.GetDimensionsCount(tensor, &rank));
    std::vector<int64_t> shape(rank);
    check(api, api.GetDimensions(tensor, shape.data(), rank));
    std::string name = "element type " + std::to_string(type);
    for (TypeName const& each : kTypeNames)
    {
        name = each.type == type ? each.name : name;
    }
    return shown_type(name, shape);
}

Types found_types(OrtApi const& api, OrtSession* session, bool outputs)
{
    OrtAllocator* allocator = nullptr;
    check(api, api.GetAllocatorWithDefaultOptions(&allocator));
    size_t count = 0;
    check(api, (outputs ? api.SessionGetOutputCount : api.SessionGetInputCount)(session, &count));
    Types types;
    for (size_t i = 0; i < count; ++i)
    {
        char* name = nullptr;
        check(api, (outputs ? api.SessionGetOutputName : api.SessionGetInputName)(session, i, allocator, &name));
        std::string const key = name;
        check(api, api.AllocatorFree(allocator, name));
        OrtTypeInfo* info = nullptr;
        check(api, (outputs ? api.SessionGetOutputTypeInfo : api.SessionGetInputTypeInfo)(session, i, &info));
        Owned<OrtTypeInfo> const held = owned(info, api.ReleaseTypeInfo);
        types[key] = found_type(api, info);
    }
    return types;
}

} // namespace

Session open_session(Library const& library, std::string const& path, int threads, std::string const& ops)
{
    OrtApi const& api = *library.api;
    OrtSessionOptions* made = nullptr;
    check(api, api.CreateSessionOptions(&made));
    Owned<OrtSessionOptions> const options = owned(made, api.ReleaseSessionOptions);
    check(api, api.SetIntraOpNumThreads(made, std::min(threads, processors())));
    check(api, api.SetSessionLogSeverityLevel(made, kErrorSeverity));
    // As in runtime/backends/onnxruntime_session.py, which says why. Its enable_mem_reuse is not in the C ABI: graphs
    // of many hundred experts take seconds longer to open here, and run the same.
    check(api, api.SetSessionGraphOptimizationLevel(made, ORT_DISABLE_ALL));
    check(api, api.AddSessionConfigEntry(made, "session.disable_prepacking", "1"));
    OrtStatus* status = ops.empty() ? nullptr : api.RegisterCustomOpsLibrary_V2(made, ops.c_str());
    OrtSession* session = nullptr;
    status = status != nullptr ? status : api.CreateSession(library.env, path.c_str(), made, &session);
    if (status != nullptr)
    {
        throw PackageError("ONNX Runtime " + library.version + " cannot load " + path + ": " + take_message(api, status));
    }
    return owned(session, api.ReleaseSession);
}

bool has_cpu_ops(std::string const& path)
{
    MappedFile const file(path);
    return std::any_of(std::begin(kCpuOnlyOps), std::end(kCpuOnlyOps),
        [&file](char const* name) { return memmem(file.data(), file.size(), name, std::strlen(name)) != nullptr; });
}

void check_signature(Library const& library, OrtSession* session, std::string const& path, EngineInfo const& engine)
{
    for (bool const outputs : {false, true})
    {
        Types expected;
        for (StepTensor const& tensor : kStepTensors)
        {
            if (is_output(tensor.name) == outputs)
            {
                expect(expected, tensor, engine);
            }
        }
        Types const found = found_types(*library.api, session, outputs);
        Types all = expected;
        all.insert(found.begin(), found.end());
        for (auto const& [name, unused] : all)
        {
            static_cast<void>(unused);
            auto const ours = expected.find(name);
            auto const theirs = found.find(name);
            std::string const says = ours == expected.end() ? "there is none" : ours->second;
            std::string const has = theirs == found.end() ? "has none" : theirs->second;
            if (says != has)
            {
                throw PackageError(path + ": " + (outputs ? "output " : "input ") + shown(name) + ": the manifest says "
                    + says + ", the graph " + has + "; rebuild the package");
            }
        }
    }
}

ONNXTensorElementDataType element_type(std::string const& dtype)
{
    auto const found = std::find_if(
        std::begin(kTypeNames), std::end(kTypeNames), [&dtype](TypeName const& each) { return dtype == each.name; });
    return found->type; // the manifest's types are among them
}

std::string cache_name(char const* name, int64_t layer)
{
    return std::string(name) + "." + std::to_string(layer);
}

} // namespace q2export::runtime::ort
