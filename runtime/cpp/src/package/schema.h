// The types of a manifest's values, as tables: every field must be there, nothing else may be, of the right type.
#pragma once

#include <cstddef>
#include <string>

#include "json/json.h"

namespace q2export::runtime::schema
{

enum class Kind
{
    kString,
    kInteger,
    kNumber,
    kFlag,
    kAny,
    kChoice,   // of strings
    kNullable, // null, or the inner type
    kList,
    kMap, // string keys
    kRecord,
};

struct Type;

struct Field
{
    char const* name;
    Type const* type;
};

struct Type
{
    Kind kind;
    Type const* inner = nullptr;
    Field const* fields = nullptr;
    size_t field_count = 0;
    char const* const* choices = nullptr;
    size_t choice_count = 0;
};

// The type of a whole manifest.
Type const& manifest_type();

// Refuse a value that is not of the type. Throws PackageError: `label`, the dotted key, what was expected and found.
void check(Type const& type, json::Value const& value, std::string const& label, std::string const& key = "");

// "; did you mean 'x'?" for the closest of some names, or the list of all.
std::string nearest(std::string_view name, char const* const* valid, size_t count);

} // namespace q2export::runtime::schema
