// The attributes of a node, from and to TensorRT's plugin fields.
#pragma once

#include <cstdint>
#include <vector>

#include <NvInferRuntime.h>

#include "common/spec.h"

namespace q2export
{

// All attributes of the specification, each exactly once and of its type.
class Attributes
{
public:
    // Throws Refusal where a field is missing, repeated, unknown, of another type or not finite.
    Attributes(OpSpec const& spec, nvinfer1::PluginFieldCollection const& fields);

    int32_t integer(char const* name) const;
    float number(char const* name) const;

    // Fields that point into this object, to be serialized.
    std::vector<nvinfer1::PluginField> fields() const;

private:
    union Value
    {
        int32_t integer;
        float number;
    };

    Value const& value(char const* name, AttributeType type) const;

    OpSpec const* spec_;
    std::vector<Value> values_; // in the order of the specification
};

// Names and types of the fields of an op, without values.
std::vector<nvinfer1::PluginField> declared_fields(OpSpec const& spec);

} // namespace q2export
