// The one creator class of all ops.
#pragma once

#include <vector>

#include <NvInferRuntime.h>

#include "common/op.h"

namespace q2export
{

class Creator final : public nvinfer1::IPluginCreatorV3One
{
public:
    explicit Creator(Op const& op);

    nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const* name,
        nvinfer1::PluginFieldCollection const* fields, nvinfer1::TensorRTPhase phase) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override;
    nvinfer1::AsciiChar const* getPluginName() const noexcept override;
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;

private:
    Op const& op_;
    std::vector<nvinfer1::PluginField> const fields_;
    nvinfer1::PluginFieldCollection const field_collection_;
};

} // namespace q2export
