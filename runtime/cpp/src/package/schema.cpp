#include "schema.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "error.h"

namespace q2export::runtime::schema
{
namespace
{

#include "generated/manifest_schema.inc"

constexpr size_t kComparedBytes = 200;
constexpr int kMaxAnyDepth = 32; // of free-form values; nothing q2export writes comes near it

using json::Value;

[[noreturn]] void refuse(std::string const& label, std::string const& key, char const* expected, Value const& found)
{
    throw PackageError(label + ": " + (key.empty() ? "the top level" : key) + " must be " + expected + ", found " + found.shown());
}

std::string joined(std::string const& key, std::string const& name)
{
    return key.empty() ? name : key + "." + name;
}

void check_record(Type const& type, Value const& value, std::string const& label, std::string const& key)
{
    json::Object const* const members = value.object();
    if (members == nullptr)
    {
        refuse(label, key, "a mapping", value);
    }
    std::string const inside = key.empty() ? "" : " in " + key;
    std::vector<char const*> names;
    for (size_t i = 0; i < type.field_count; ++i)
    {
        names.push_back(type.fields[i].name);
    }
    for (auto const& [name, unused] : *members)
    {
        static_cast<void>(unused);
        if (std::find(names.begin(), names.end(), name) == names.end())
        {
            throw PackageError(label + ": unknown key " + shown(name) + inside + nearest(name, names.data(), names.size()));
        }
    }
    for (size_t i = 0; i < type.field_count; ++i)
    {
        Value const* const found = value.find(names[i]);
        if (found == nullptr)
        {
            throw PackageError(label + ": key '" + names[i] + "'" + inside + " is missing");
        }
        check(*type.fields[i].type, *found, label, joined(key, names[i]));
    }
}

void check_choice(Type const& type, Value const& value, std::string const& label, std::string const& key)
{
    std::string const* const text = value.string();
    if (text == nullptr)
    {
        std::string expected = "one of ";
        for (size_t i = 0; i < type.choice_count; ++i)
        {
            expected += (i == 0 ? "" : ", ") + std::string(type.choices[i]);
        }
        refuse(label, key, expected.c_str(), value);
    }
    if (std::find(type.choices, type.choices + type.choice_count, *text) == type.choices + type.choice_count)
    {
        throw PackageError(label + ": " + key + " is " + shown(*text) + nearest(*text, type.choices, type.choice_count));
    }
}

void check_number(Value const& value, std::string const& label, std::string const& key)
{
    constexpr double kLargest = 1e308;
    if (value.integer() == nullptr && value.big_integer() == nullptr && value.real() == nullptr)
    {
        refuse(label, key, "a number", value);
    }
    if (value.real() != nullptr && !(std::abs(*value.real()) <= kLargest))
    {
        refuse(label, key, "a finite number", value);
    }
    bool const inexact = value.integer() != nullptr
        && static_cast<long double>(static_cast<double>(*value.integer())) != static_cast<long double>(*value.integer());
    if (inexact || value.big_integer() != nullptr)
    {
        refuse(label, key, "a number that float64 holds exactly", value);
    }
}

void check_any(Value const& value, std::string const& label, std::string const& key, int depth)
{
    if (depth == 0)
    {
        throw PackageError(label + ": " + shown(key) + " is nested more than " + std::to_string(kMaxAnyDepth) + " deep");
    }
    if (json::Object const* const members = value.object())
    {
        for (auto const& [name, item] : *members)
        {
            check_any(item, label, joined(key, name), depth - 1);
        }
    }
    else if (json::Array const* const items = value.array())
    {
        for (Value const& item : *items)
        {
            check_any(item, label, key + "[]", depth - 1);
        }
    }
    else if (value.real() != nullptr)
    {
        check_number(value, label, key);
    }
}

// How many letters must change, be added or removed to make one word of the other.
size_t distance(std::string_view a, std::string_view b)
{
    std::vector<size_t> row(b.size() + 1);
    for (size_t j = 0; j <= b.size(); ++j)
    {
        row[j] = j;
    }
    for (size_t i = 1; i <= a.size(); ++i)
    {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b.size(); ++j)
        {
            size_t const changed = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
            diagonal = row[j];
            row[j] = std::min({row[j] + 1, row[j - 1] + 1, changed});
        }
    }
    return row[b.size()];
}

} // namespace

Type const& manifest_type()
{
    return kManifestType;
}

void check(Type const& type, Value const& value, std::string const& label, std::string const& key)
{
    switch (type.kind)
    {
    case Kind::kString:
        return value.string() != nullptr ? void() : refuse(label, key, "a string", value);
    case Kind::kInteger:
        return value.integer() != nullptr || value.big_integer() != nullptr ? void() : refuse(label, key, "an integer", value);
    case Kind::kNumber:
        return check_number(value, label, key);
    case Kind::kFlag:
        return value.flag() != nullptr ? void() : refuse(label, key, "true or false", value);
    case Kind::kAny:
        return check_any(value, label, key, kMaxAnyDepth);
    case Kind::kChoice:
        return check_choice(type, value, label, key);
    case Kind::kNullable:
        return value.is_null() ? void() : check(*type.inner, value, label, key);
    case Kind::kRecord:
        return check_record(type, value, label, key);
    case Kind::kList:
    {
        json::Array const* const items = value.array();
        if (items == nullptr)
        {
            refuse(label, key, "a list", value);
        }
        for (size_t i = 0; i < items->size(); ++i)
        {
            check(*type.inner, (*items)[i], label, key + "[" + std::to_string(i) + "]");
        }
        return;
    }
    case Kind::kMap:
    {
        json::Object const* const members = value.object();
        if (members == nullptr)
        {
            refuse(label, key, "a mapping", value);
        }
        for (auto const& [name, item] : *members)
        {
            check(*type.inner, item, label, key + "[" + shown(name) + "]");
        }
        return;
    }
    }
}

std::string nearest(std::string_view name, char const* const* valid, size_t count)
{
    std::set<std::string_view> const sorted(valid, valid + count);
    std::string_view best;
    size_t least = name.size() * 2 / 5 + 1; // further away than that it is another word
    for (std::string_view const each : sorted)
    {
        size_t const far = name.size() <= kComparedBytes ? distance(name, each) : least;
        if (far < least)
        {
            best = each;
            least = far;
        }
    }
    if (!best.empty())
    {
        return "; did you mean '" + std::string(best) + "'?";
    }
    std::string list = "; valid: ";
    for (std::string_view const each : sorted)
    {
        list += (list.size() == 9 ? "" : ", ") + std::string(each);
    }
    return list;
}

} // namespace q2export::runtime::schema
