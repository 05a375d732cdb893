// Takes a C++ plugin through its life, as TensorRT would, with tensors in host memory: the test links it with the
// plugins and the kernels compiled for the host.
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <NvInferRuntime.h>

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& nbCreators);
extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder* finder);

namespace
{

using namespace nvinfer1;

class Logger final : public ILogger
{
public:
    void log(Severity, AsciiChar const* message) noexcept override
    {
        text += std::string(message) + "\n";
    }

    std::string text;
};

class Finder final : public ILoggerFinder
{
public:
    ILogger* findLogger() override
    {
        return &logger;
    }

    Logger logger;
};

Finder finder;

IPluginCreatorV3One* find_creator(char const* name)
{
    int32_t count = 0;
    IPluginCreatorInterface* const* const creators = getCreators(count);
    for (int32_t i = 0; i < count; ++i)
    {
        auto* const creator = static_cast<IPluginCreatorV3One*>(creators[i]);
        if (std::strcmp(creator->getPluginName(), name) == 0)
        {
            return creator;
        }
    }
    return nullptr;
}

} // namespace

extern "C" {

struct DriverTensor
{
    int32_t type;
    int32_t rank;
    int64_t dims[4];
    void* data;
};

// Everything that was logged so far.
char const* driver_log()
{
    return finder.logger.text.c_str();
}

// Runs one node; returns null, or the name of the step that failed.
char const* driver_run(char const* op, PluginFieldCollection const* fields, DriverTensor const* tensors,
    int32_t input_count, int32_t output_count)
{
    finder.logger.text.clear();
    setLoggerFinder(&finder);
    IPluginCreatorV3One* const creator = find_creator(op);
    if (creator == nullptr)
    {
        return "getCreators";
    }
    std::unique_ptr<IPluginV3> const made(creator->createPlugin("node_7", fields, TensorRTPhase::kBUILD));
    if (!made)
    {
        return "createPlugin";
    }
    std::unique_ptr<IPluginV3> const plugin(made->clone());
    auto* const build = static_cast<IPluginV3OneBuildV2*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));

    int32_t const count = input_count + output_count;
    std::vector<DataType> types(count);
    std::vector<DynamicPluginTensorDesc> dynamic(count);
    std::vector<PluginTensorDesc> descs(count);
    std::vector<void const*> inputs;
    std::vector<void*> outputs;
    for (int32_t i = 0; i < count; ++i)
    {
        DriverTensor const& tensor = tensors[i];
        types[i] = static_cast<DataType>(tensor.type);
        descs[i].type = types[i];
        descs[i].format = TensorFormat::kLINEAR;
        descs[i].dims.nbDims = tensor.rank;
        std::copy(tensor.dims, tensor.dims + tensor.rank, descs[i].dims.d);
        dynamic[i].desc = descs[i];
        dynamic[i].min = dynamic[i].max = dynamic[i].opt = descs[i].dims;
        i < input_count ? inputs.push_back(tensor.data) : outputs.push_back(tensor.data);
    }
    std::vector<DataType> output_types(output_count);
    if (build->getOutputDataTypes(output_types.data(), output_count, types.data(), input_count) != 0)
    {
        return "getOutputDataTypes";
    }
    if (!std::equal(output_types.begin(), output_types.end(), types.begin() + input_count))
    {
        return "getOutputDataTypes: another type";
    }
    for (int32_t i = 0; i < count; ++i)
    {
        if (!build->supportsFormatCombination(i, dynamic.data(), input_count, output_count))
        {
            return "supportsFormatCombination";
        }
    }
    DynamicPluginTensorDesc const* const out = dynamic.data() + input_count;
    if (build->configurePlugin(dynamic.data(), input_count, out, output_count) != 0)
    {
        return "configurePlugin";
    }
    size_t const bytes = build->getWorkspaceSize(dynamic.data(), input_count, out, output_count);

    // What an engine keeps is the serialized fields.
    auto* const builder_runtime
        = static_cast<IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    std::unique_ptr<IPluginV3> const loaded(
        creator->createPlugin("", builder_runtime->getFieldsToSerialize(), TensorRTPhase::kRUNTIME));
    if (!loaded)
    {
        return "createPlugin from serialized fields";
    }
    auto* const loaded_runtime
        = static_cast<IPluginV3OneRuntime*>(loaded->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    std::unique_ptr<IPluginV3> const attached(loaded_runtime->attachToContext(nullptr));
    auto* const runtime
        = static_cast<IPluginV3OneRuntime*>(attached->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    if (runtime->onShapeChange(descs.data(), input_count, descs.data() + input_count, output_count) != 0)
    {
        return "onShapeChange";
    }
    // One byte off any alignment, and not one byte more than was asked for.
    std::vector<unsigned char> workspace(bytes + 1, 0xFF);
    if (runtime->enqueue(descs.data(), descs.data() + input_count, inputs.data(), outputs.data(),
            workspace.data() + 1, nullptr)
        != 0)
    {
        return "enqueue";
    }
    return nullptr;
}

// The input that output `index` of an op updates in place, or -1.
int32_t driver_aliased_input(char const* op, PluginFieldCollection const* fields, int32_t index)
{
    std::unique_ptr<IPluginV3> const plugin(find_creator(op)->createPlugin("node_7", fields, TensorRTPhase::kBUILD));
    auto* const build = static_cast<IPluginV3OneBuildV2*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
    return build->getAliasedInput(index);
}

} // extern "C"
