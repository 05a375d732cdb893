#include "common/attributes.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "common/log.h"

namespace q2export
{
namespace
{

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

PluginFieldType field_type(AttributeType type)
{
    return type == AttributeType::kInt ? PluginFieldType::kINT32 : PluginFieldType::kFLOAT32;
}

[[noreturn]] void refuse(char const* attribute, std::string const& problem)
{
    throw Refusal(std::string("attribute ") + attribute + " " + problem);
}

// The one element of a field, which need not be aligned.
template <typename Value>
Value read(PluginField const& field)
{
    if (field.length != 1 || field.data == nullptr)
    {
        refuse(field.name, "has " + std::to_string(field.length) + " values, expected 1");
    }
    Value value;
    std::memcpy(&value, field.data, sizeof(value));
    return value;
}

// TensorRT's parser hands integers over as 32 bits; other users of the registry may not.
int32_t read_integer(PluginField const& field)
{
    if (field.type == PluginFieldType::kINT32)
    {
        return read<int32_t>(field);
    }
    if (field.type != PluginFieldType::kINT64)
    {
        refuse(field.name, "is no integer (field type " + std::to_string(static_cast<int32_t>(field.type)) + ")");
    }
    int64_t const wide = read<int64_t>(field);
    if (wide < std::numeric_limits<int32_t>::min() || wide > std::numeric_limits<int32_t>::max())
    {
        refuse(field.name, "is " + std::to_string(wide) + ", which has more than 32 bits");
    }
    return static_cast<int32_t>(wide);
}

float read_number(PluginField const& field)
{
    if (field.type != PluginFieldType::kFLOAT32)
    {
        refuse(field.name, "is no float (field type " + std::to_string(static_cast<int32_t>(field.type)) + ")");
    }
    float const value = read<float>(field);
    if (!std::isfinite(value))
    {
        refuse(field.name, "is " + std::to_string(value) + ", expected a finite value");
    }
    return value;
}

int32_t index_of(OpSpec const& spec, char const* name)
{
    for (int32_t i = 0; i < spec.attributes.size(); ++i)
    {
        if (std::strcmp(spec.attributes[i].name, name) == 0)
        {
            return i;
        }
    }
    return -1;
}

} // namespace

Attributes::Attributes(OpSpec const& spec, nvinfer1::PluginFieldCollection const& fields)
    : spec_(&spec)
    , values_(spec.attributes.size())
{
    std::vector<bool> seen(values_.size());
    for (int32_t i = 0; i < fields.nbFields; ++i)
    {
        PluginField const& field = fields.fields[i];
        int32_t const index = index_of(spec, field.name);
        if (index < 0)
        {
            refuse(field.name, std::string("is unknown to ") + spec.name);
        }
        if (seen[index])
        {
            refuse(field.name, "is given twice");
        }
        seen[index] = true;
        if (spec.attributes[index].type == AttributeType::kInt)
        {
            values_[index].integer = read_integer(field);
        }
        else
        {
            values_[index].number = read_number(field);
        }
    }
    for (int32_t i = 0; i < spec.attributes.size(); ++i)
    {
        if (!seen[i])
        {
            refuse(spec.attributes[i].name, "is missing");
        }
    }
}

int32_t Attributes::integer(char const* name) const
{
    return value(name, AttributeType::kInt).integer;
}

float Attributes::number(char const* name) const
{
    return value(name, AttributeType::kFloat).number;
}

std::vector<PluginField> Attributes::fields() const
{
    std::vector<PluginField> fields = declared_fields(*spec_);
    for (size_t i = 0; i < fields.size(); ++i)
    {
        fields[i].data = &values_[i];
    }
    return fields;
}

Attributes::Value const& Attributes::value(char const* name, AttributeType type) const
{
    int32_t const index = index_of(*spec_, name);
    if (index < 0 || spec_->attributes[index].type != type)
    {
        throw std::logic_error(std::string(spec_->name) + " has no attribute " + name + " of this type");
    }
    return values_[index];
}

std::vector<PluginField> declared_fields(OpSpec const& spec)
{
    std::vector<PluginField> fields;
    for (AttributeSpec const& attribute : spec.attributes)
    {
        fields.emplace_back(attribute.name, nullptr, field_type(attribute.type), 1);
    }
    return fields;
}

} // namespace q2export
