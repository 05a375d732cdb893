#include "common/plugin.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "common/log.h"

namespace q2export
{
namespace
{

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

constexpr int32_t kFailure = -1; // TensorRT wants 0 for success

bool is_supported(ElementType element, DataType type)
{
    switch (element)
    {
    case ElementType::kF: return type == DataType::kFLOAT;
    case ElementType::kS: return type == DataType::kHALF;
    case ElementType::kP: return type == DataType::kINT32;
    case ElementType::kL: return type == DataType::kINT64;
    default: return type == DataType::kHALF || type == DataType::kBF16 || type == DataType::kFLOAT;
    }
}

char const* expected_type(ElementType element)
{
    switch (element)
    {
    case ElementType::kF: return "float32";
    case ElementType::kS: return "float16";
    case ElementType::kP: return "int32";
    case ElementType::kL: return "int64";
    default: return "float16, bfloat16 or float32, as all others";
    }
}

q2export_dtype kernel_dtype(DataType type)
{
    switch (type)
    {
    case DataType::kHALF: return Q2EXPORT_FLOAT16;
    case DataType::kBF16: return Q2EXPORT_BFLOAT16;
    default: return Q2EXPORT_FLOAT32;
    }
}

void check_status(q2export_status status)
{
    if (status != Q2EXPORT_SUCCESS)
    {
        throw Refusal(std::string(q2export_status_string(status)) + ": " + q2export_last_error());
    }
}

// TensorRT does not say how it aligns a plugin's workspace, so that many bytes more are asked for.
constexpr size_t kAlignment = Q2EXPORT_WORKSPACE_ALIGNMENT;

void* aligned(void* workspace)
{
    uintptr_t const address = reinterpret_cast<uintptr_t>(workspace);
    return static_cast<unsigned char*>(workspace) + (kAlignment - address % kAlignment) % kAlignment;
}

// What is known of a shape while the network is defined; the rest is unknown.
Dims known_dims(nvinfer1::DimsExprs const& shape)
{
    Dims dims{};
    dims.nbDims = shape.nbDims;
    for (int32_t axis = 0; axis < shape.nbDims; ++axis)
    {
        nvinfer1::IDimensionExpr const& size = *shape.d[axis];
        dims.d[axis] = size.isConstant() ? size.getConstantValue() : Sizes::kUnknown;
    }
    return dims;
}

// The expression of a symbol, from the first input that has it.
nvinfer1::IDimensionExpr const* expression(OpSpec const& spec, nvinfer1::DimsExprs const* inputs, Symbol symbol)
{
    for (int32_t i = 0; i < spec.inputs.size(); ++i)
    {
        TensorSpec const& tensor = spec.inputs[i];
        Symbol const* const end = tensor.shape + tensor.rank;
        Symbol const* const found = std::find(tensor.shape, end, symbol);
        if (found != end)
        {
            return inputs[i].d[found - tensor.shape];
        }
    }
    throw std::logic_error(std::string(spec.name) + ": no input has the dimension " + symbol_name(symbol));
}

} // namespace

Plugin::Plugin(Op const& op, Attributes attributes, std::string node)
    : op_(op)
    , attributes_(std::move(attributes))
    , node_(std::move(node))
    , subject_("node " + node_ + " (" + op.spec.name + ")")
    , fields_(attributes_.fields())
    , field_collection_{static_cast<int32_t>(fields_.size()), fields_.data()}
{
    // The kernels know the attributes' ranges: ask them about the smallest shapes.
    Sizes smallest(1);
    smallest[Symbol::kD] = 2;
    smallest[Symbol::kH] = smallest[Symbol::kI] = 128; // the largest block of packed weights
    workspace_bytes(smallest, DataType::kFLOAT);
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept
{
    switch (type)
    {
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuildV2*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept
{
    return copy();
}

nvinfer1::AsciiChar const* Plugin::getPluginName() const noexcept
{
    return op_.spec.name;
}

nvinfer1::AsciiChar const* Plugin::getPluginVersion() const noexcept
{
    return kPluginVersion;
}

nvinfer1::AsciiChar const* Plugin::getPluginNamespace() const noexcept
{
    return kPluginNamespace;
}

int32_t Plugin::configurePlugin(
    DynamicPluginTensorDesc const* in, int32_t nbInputs, DynamicPluginTensorDesc const*, int32_t nbOutputs) noexcept
{
    return guarded(subject_.c_str(), kFailure, [&] {
        check_counts(nbInputs, nbOutputs);
        checked_sizes([&](int32_t i) -> Dims const& { return in[i].desc.dims; });
        return 0;
    });
}

int32_t Plugin::getOutputDataTypes(
    DataType* outputTypes, int32_t nbOutputs, DataType const* inputTypes, int32_t nbInputs) const noexcept
{
    return guarded(subject_.c_str(), kFailure, [&] {
        check_counts(nbInputs, nbOutputs);
        std::fill_n(outputTypes, nbOutputs, check_types(inputTypes)); // every output is a T
        return 0;
    });
}

int32_t Plugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs, nvinfer1::DimsExprs const*,
    int32_t, nvinfer1::DimsExprs* outputs, int32_t nbOutputs, nvinfer1::IExprBuilder&) noexcept
{
    return guarded(subject_.c_str(), kFailure, [&] {
        check_counts(nbInputs, nbOutputs);
        std::vector<Dims> known(nbInputs);
        std::transform(inputs, inputs + nbInputs, known.begin(), known_dims);
        checked_sizes([&](int32_t i) -> Dims const& { return known[i]; });
        for (int32_t i = 0; i < nbOutputs; ++i)
        {
            TensorSpec const& tensor = op_.spec.outputs[i];
            outputs[i].nbDims = tensor.rank;
            for (int32_t axis = 0; axis < tensor.rank; ++axis)
            {
                outputs[i].d[axis] = expression(op_.spec, inputs, tensor.shape[axis]);
            }
        }
        return 0;
    });
}

bool Plugin::supportsFormatCombination(
    int32_t pos, DynamicPluginTensorDesc const* inOut, int32_t nbInputs, int32_t) noexcept
{
    TensorSpec const& tensor = pos < nbInputs ? input_spec(op_.spec, pos) : op_.spec.outputs[pos - nbInputs];
    PluginTensorDesc const& desc = inOut[pos].desc;
    // Input 0 is a T, and all of them are of one type.
    bool const is_like_first = tensor.element_type != ElementType::kT || desc.type == inOut[0].desc.type;
    return desc.format == nvinfer1::TensorFormat::kLINEAR && is_supported(tensor.element_type, desc.type)
        && is_like_first;
}

int32_t Plugin::getNbOutputs() const noexcept
{
    return op_.spec.outputs.size();
}

size_t Plugin::getWorkspaceSize(DynamicPluginTensorDesc const* inputs, int32_t nbInputs,
    DynamicPluginTensorDesc const*, int32_t nbOutputs) const noexcept
{
    return guarded(subject_.c_str(), size_t{0}, [&] {
        check_counts(nbInputs, nbOutputs);
        Sizes const sizes = checked_sizes([&](int32_t i) -> Dims const& { return inputs[i].max; });
        size_t const bytes = workspace_bytes(sizes, inputs[0].desc.type);
        return bytes == 0 ? size_t{0} : bytes + kAlignment;
    });
}

int32_t Plugin::getAliasedInput(int32_t outputIndex) noexcept
{
    for (AliasSpec const& alias : op_.spec.aliases)
    {
        if (alias.output == outputIndex)
        {
            return alias.input;
        }
    }
    return -1;
}

int32_t Plugin::onShapeChange(
    PluginTensorDesc const* in, int32_t nbInputs, PluginTensorDesc const*, int32_t nbOutputs) noexcept
{
    return guarded(subject_.c_str(), kFailure, [&] {
        check_counts(nbInputs, nbOutputs);
        Sizes const sizes = checked_sizes([&](int32_t i) -> Dims const& { return in[i].dims; });
        workspace_bytes(sizes, in[0].type);
        return 0;
    });
}

int32_t Plugin::enqueue(PluginTensorDesc const* inputDesc, PluginTensorDesc const*, void const* const* inputs,
    void* const* outputs, void* workspace, cudaStream_t stream) noexcept
{
    return guarded(subject_.c_str(), kFailure, [&] {
        Sizes const sizes = checked_sizes([&](int32_t i) -> Dims const& { return inputDesc[i].dims; });
        size_t const bytes = workspace_bytes(sizes, inputDesc[0].type);
        Buffers const buffers{inputs, outputs, bytes == 0 ? nullptr : aligned(workspace), bytes, stream};
        check_status(op_.enqueue({attributes_, sizes, kernel_dtype(inputDesc[0].type)}, buffers));
        return 0;
    });
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept
{
    return copy();
}

nvinfer1::PluginFieldCollection const* Plugin::getFieldsToSerialize() noexcept
{
    return &field_collection_;
}

int32_t Plugin::input_count() const
{
    int32_t const repeated = op_.spec.repeated.size();
    return op_.spec.inputs.size() + (repeated == 0 ? 0 : repeated * attributes_.integer("num_experts"));
}

void Plugin::check_counts(int32_t inputs, int32_t outputs) const
{
    if (inputs != input_count() || outputs != op_.spec.outputs.size())
    {
        throw Refusal(std::to_string(inputs) + " inputs and " + std::to_string(outputs) + " outputs, expected "
            + std::to_string(input_count()) + " and " + std::to_string(op_.spec.outputs.size()));
    }
}

// Returns the type of the T tensors; throws Refusal where an input has another type than its specification.
DataType Plugin::check_types(DataType const* inputs) const
{
    for (int32_t i = 0; i < input_count(); ++i)
    {
        ElementType const element = input_spec(op_.spec, i).element_type;
        bool const is_like_first = element != ElementType::kT || inputs[i] == inputs[0];
        if (!is_supported(element, inputs[i]) || !is_like_first)
        {
            throw Refusal("input " + input_name(op_.spec, i) + " has data type "
                + std::to_string(static_cast<int32_t>(inputs[i])) + ", expected " + expected_type(element));
        }
    }
    return inputs[0];
}

Sizes Plugin::checked_sizes(std::function<Dims const&(int32_t)> const& dims_of_input) const
{
    Sizes sizes = bind_sizes(op_.spec, input_count(), dims_of_input);
    if (op_.relate != nullptr)
    {
        op_.relate(sizes, attributes_);
    }
    for (Tie const& tie : op_.ties)
    {
        int64_t expected = attributes_.integer(tie.attribute);
        unify(expected, sizes[tie.symbol], [&] {
            return std::string("dimension ") + symbol_name(tie.symbol) + ", attribute " + tie.attribute + ",";
        });
    }
    return sizes;
}

size_t Plugin::workspace_bytes(Sizes const& sizes, DataType type) const
{
    size_t bytes = 0;
    check_status(op_.workspace_size({attributes_, sizes, kernel_dtype(type)}, &bytes));
    return bytes;
}

nvinfer1::IPluginV3* Plugin::copy() const noexcept
{
    return guarded(subject_.c_str(), static_cast<nvinfer1::IPluginV3*>(nullptr),
        [&] { return std::make_unique<Plugin>(op_, attributes_, node_).release(); });
}

} // namespace q2export
