#include "node.h"

namespace q2export::onnxruntime
{
namespace
{

bool as_flag(char const* name, int64_t value)
{
    if (value != 0 && value != 1)
    {
        throw Refusal(std::string(name) + " is " + std::to_string(value) + ", expected 0 or 1");
    }
    return value == 1;
}

} // namespace

int64_t Attributes::integer(char const* name) const
{
    int64_t value = 0;
    onnxruntime::check(api_.KernelInfoGetAttribute_int64(info_, name, &value));
    return value;
}

float Attributes::real(char const* name) const
{
    float value = 0.0f;
    onnxruntime::check(api_.KernelInfoGetAttribute_float(info_, name, &value));
    return value;
}

bool Attributes::flag(char const* name) const
{
    return as_flag(name, integer(name));
}

bool Attributes::flag(char const* name, bool absent) const
{
    int64_t value = 0;
    if (OrtStatus* const status = api_.KernelInfoGetAttribute_int64(info_, name, &value))
    {
        api_.ReleaseStatus(status);
        return absent;
    }
    return as_flag(name, value);
}

Tensor Attributes::constant_input(size_t index, char const* name) const
{
    int is_constant = 0;
    OrtValue const* value = nullptr;
    onnxruntime::check(api_.KernelInfoGetConstantInput_tensor(info_, index, &is_constant, &value));
    return is_constant != 0 ? read_tensor(api_, value, name) : Tensor{};
}

std::string Attributes::node_name() const
{
    size_t size = 0; // with the zero at the end
    onnxruntime::check(api_.KernelInfo_GetNodeName(info_, nullptr, &size));
    std::string name(size, '\0');
    onnxruntime::check(api_.KernelInfo_GetNodeName(info_, name.data(), &size));
    name.resize(size == 0 ? 0 : size - 1);
    return name;
}

Call::Call(OrtApi const& api, OrtKernelContext* context)
    : api_(api)
    , context_(context)
{
    threads_.context = this;
    threads_.run = [](void* self, q2export_cpu_task task, void* data, size_t count) {
        Call const& call = *static_cast<Call const*>(self);
        // No batches: threads take one task at a time. It fails for null pointers alone.
        call.api_.KernelContext_ParallelFor(call.context_, task, count, 0, data);
    };
}

size_t Call::input_count() const
{
    size_t count = 0;
    onnxruntime::check(api_.KernelContext_GetInputCount(context_, &count));
    return count;
}

Tensor Call::input(size_t index, char const* name) const
{
    OrtValue const* value = nullptr;
    onnxruntime::check(api_.KernelContext_GetInput(context_, index, &value));
    return read_tensor(api_, value, name);
}

Tensor Call::input(size_t index, char const* name, ONNXTensorElementDataType type) const
{
    Tensor const tensor = input(index, name);
    if (tensor.type != type)
    {
        throw Refusal(std::string(name) + " has element type " + std::to_string(tensor.type) + ", expected "
            + std::to_string(type));
    }
    return tensor;
}

void* Call::output(size_t index, Shape const& shape) const
{
    OrtValue* value = nullptr;
    onnxruntime::check(api_.KernelContext_GetOutput(context_, index, shape.dims.data(), shape.rank, &value));
    void* data = nullptr;
    onnxruntime::check(api_.GetTensorMutableData(value, &data));
    return data;
}

} // namespace q2export::onnxruntime
