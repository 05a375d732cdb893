#include "common/creator.h"

#include <memory>
#include <string>

#include "common/log.h"
#include "common/plugin.h"

namespace q2export
{

Creator::Creator(Op const& op)
    : op_(op)
    , fields_(declared_fields(op.spec))
    , field_collection_{static_cast<int32_t>(fields_.size()), fields_.data()}
{
}

nvinfer1::IPluginV3* Creator::createPlugin(nvinfer1::AsciiChar const* name,
    nvinfer1::PluginFieldCollection const* fields, nvinfer1::TensorRTPhase) noexcept
{
    char const* const node = name == nullptr ? "" : name;
    nvinfer1::IPluginV3* const failure = nullptr;
    return guarded(op_.spec.name, failure, [&]() -> nvinfer1::IPluginV3* {
        if (fields == nullptr)
        {
            throw Refusal(std::string("node ") + node + ": no attributes are given");
        }
        try
        {
            return std::make_unique<Plugin>(op_, Attributes(op_.spec, *fields), node).release();
        }
        catch (Refusal const& refusal)
        {
            throw Refusal(std::string("node ") + node + ": " + refusal.what());
        }
    });
}

nvinfer1::PluginFieldCollection const* Creator::getFieldNames() noexcept
{
    return &field_collection_;
}

nvinfer1::AsciiChar const* Creator::getPluginName() const noexcept
{
    return op_.spec.name;
}

nvinfer1::AsciiChar const* Creator::getPluginVersion() const noexcept
{
    return kPluginVersion;
}

nvinfer1::AsciiChar const* Creator::getPluginNamespace() const noexcept
{
    return kPluginNamespace;
}

} // namespace q2export
