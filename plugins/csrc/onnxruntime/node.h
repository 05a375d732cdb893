// One run of a node, and its attributes.
#pragma once

#include <string>

#include "q2export/cpu.h"
#include "tensor.h"

namespace q2export::onnxruntime
{

// A node while its kernel is made.
class Attributes
{
public:
    Attributes(OrtApi const& api, OrtKernelInfo const* info)
        : api_(api)
        , info_(info)
    {
    }

    // Throws OrtFailure where the node lacks the attribute.
    int64_t integer(char const* name) const;
    float real(char const* name) const;

    // An integer that is 0 or 1; throws Refusal for any other.
    bool flag(char const* name) const;

    // The same; `absent` where the node has no integer of that name.
    bool flag(char const* name, bool absent) const;

    // An input that is an initializer, which stays where it is as long as the session lives; else not present().
    Tensor constant_input(size_t index, char const* name) const;

    // The node's name; empty where it has none.
    std::string node_name() const;

private:
    OrtApi const& api_;
    OrtKernelInfo const* info_;
};

// A node while it runs.
class Call
{
public:
    Call(OrtApi const& api, OrtKernelContext* context);

    size_t input_count() const;

    // Not present() where the optional input is left out.
    Tensor input(size_t index, char const* name) const;

    // Throws Refusal unless present and of the type.
    Tensor input(size_t index, char const* name, ONNXTensorElementDataType type) const;

    // Allocates an output, or finds the buffer that was bound to it.
    void* output(size_t index, Shape const& shape) const;

    // The session's threads.
    q2export_cpu_parallel_for const* threads() const
    {
        return &threads_;
    }

    // Throws Refusal with the kernels' message. Each library defines it for kernels of its own.
    static void check(q2export_status status);

    OrtApi const& api() const
    {
        return api_;
    }

    OrtKernelContext* context() const
    {
        return context_;
    }

private:
    OrtApi const& api_;
    OrtKernelContext* context_;
    q2export_cpu_parallel_for threads_;
};

} // namespace q2export::onnxruntime
