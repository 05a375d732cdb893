#include "options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "error.h"
#include "package/schema.h"

namespace q2export::runtime
{
namespace
{

// The range of an option and what it expects in words.
struct Limits
{
    double low;
    double high;
    bool above; // `low` itself is out of range
    char const* expected;
};

[[noreturn]] void refuse(char const* name, Limits const& limits, std::string const& found)
{
    throw GenerationError(std::string(name) + " must be " + limits.expected + ", found " + found);
}

std::string text_of(double value)
{
    char text[32];
    return std::string(text, std::to_chars(text, text + sizeof(text), value).ptr);
}

std::string kind_of(OptionValue const& value)
{
    if (auto const* integer = std::get_if<int64_t>(&value))
    {
        return std::to_string(*integer);
    }
    if (auto const* real = std::get_if<double>(&value))
    {
        return text_of(*real);
    }
    if (auto const* flag = std::get_if<bool>(&value))
    {
        return *flag ? "true" : "false";
    }
    return std::holds_alternative<std::vector<uint64_t>>(value) ? "a list of integers"
        : std::holds_alternative<std::map<int64_t, double>>(value) ? "a mapping of token ids to numbers" : "a list of strings";
}

bool in_range(double value, Limits const& limits)
{
    return value >= limits.low && value <= limits.high && !(limits.above && value == limits.low);
}

void assign(int64_t& target, OptionValue const& value, char const* name, Limits const& limits)
{
    auto const* const integer = std::get_if<int64_t>(&value);
    if (integer == nullptr || !in_range(static_cast<double>(*integer), limits))
    {
        refuse(name, limits, kind_of(value));
    }
    target = *integer;
}

void assign(std::optional<int64_t>& target, OptionValue const& value, char const* name, Limits const& limits)
{
    int64_t result = 0;
    assign(result, value, name, limits);
    target = result;
}

void assign(double& target, OptionValue const& value, char const* name, Limits const& limits)
{
    auto const* const integer = std::get_if<int64_t>(&value);
    auto const* const real = std::get_if<double>(&value);
    double const number = integer != nullptr ? static_cast<double>(*integer) : real != nullptr ? *real : NAN;
    if (!in_range(number, limits))
    {
        refuse(name, limits, kind_of(value));
    }
    target = number;
}

void assign(bool& target, OptionValue const& value, char const* name, Limits const& limits)
{
    auto const* const flag = std::get_if<bool>(&value);
    if (flag == nullptr)
    {
        refuse(name, limits, kind_of(value));
    }
    target = *flag;
}

void assign(std::vector<uint64_t>& target, OptionValue const& value, char const* name, Limits const& limits)
{
    if (auto const* const integer = std::get_if<int64_t>(&value); integer != nullptr && *integer >= 0)
    {
        target = {static_cast<uint64_t>(*integer)};
        return;
    }
    auto const* const several = std::get_if<std::vector<uint64_t>>(&value);
    if (several == nullptr)
    {
        refuse(name, limits, kind_of(value));
    }
    target = *several;
}

void assign(std::vector<std::string>& target, OptionValue const& value, char const* name, Limits const& limits)
{
    auto const* const strings = std::get_if<std::vector<std::string>>(&value);
    if (strings == nullptr || std::any_of(strings->begin(), strings->end(), [](auto const& each) { return each.empty(); }))
    {
        refuse(name, limits, strings == nullptr ? kind_of(value) : "an empty one");
    }
    target = *strings;
}

void assign(std::map<int64_t, double>& target, OptionValue const& value, char const* name, Limits const& limits)
{
    auto const* const biases = std::get_if<std::map<int64_t, double>>(&value);
    if (biases == nullptr)
    {
        refuse(name, limits, kind_of(value));
    }
    for (auto const& [token, bias] : *biases)
    {
        if (token < 0 || !in_range(bias, limits))
        {
            refuse(name, limits, std::to_string(token) + "=" + text_of(bias));
        }
    }
    target = *biases;
}

// Put one value into its place.
void put(GenerationOptions& options, std::string const& name, OptionValue const& value)
{
#define Q2EXPORT_TYPE(...) __VA_ARGS__
#define Q2EXPORT_OPTION(option, type, initial, low, high, above, expected, meaning)                                    \
    if (name == #option)                                                                                               \
    {                                                                                                                  \
        return assign(options.option, value, #option, Limits{low, high, above, expected});                             \
    }
#include "generated/options.inc"
#undef Q2EXPORT_OPTION
#define Q2EXPORT_OPTION(option, type, initial, low, high, above, expected, meaning) #option,
    static constexpr char const* kNames[] = {
#include "generated/options.inc"
    };
#undef Q2EXPORT_OPTION
#undef Q2EXPORT_TYPE
    throw GenerationError("no option " + shown(name) + schema::nearest(name, kNames, std::size(kNames)));
}

} // namespace

void GivenOptions::set(std::string const& name, OptionValue value)
{
    GenerationOptions scratch;
    put(scratch, name, value);
    values_[name] = std::move(value);
}

GenerationOptions GivenOptions::over(GenerationOptions const& defaults) const
{
    GenerationOptions options = defaults;
    for (auto const& [name, value] : values_)
    {
        put(options, name, value);
    }
    bool const asks = has("temperature") || has("top_k") || has("top_p") || has("min_p");
    options.do_sample = options.do_sample || (asks && !has("do_sample"));
    if (has("max_new_tokens") && options.min_new_tokens > *options.max_new_tokens)
    {
        throw GenerationError("min_new_tokens must be at most max_new_tokens, which is "
            + std::to_string(*options.max_new_tokens) + ", found " + std::to_string(options.min_new_tokens));
    }
    return options;
}

std::vector<std::optional<uint64_t>> seeds_of(GenerationOptions const& options, size_t prompts)
{
    std::vector<std::optional<uint64_t>> seeds(prompts);
    if (options.seed.empty())
    {
        return seeds;
    }
    if (options.seed.size() != 1 && options.seed.size() != prompts)
    {
        throw GenerationError("seed must be one integer, or one for each of the " + std::to_string(prompts)
            + " prompts, found " + std::to_string(options.seed.size()));
    }
    for (size_t i = 0; i < prompts; ++i)
    {
        seeds[i] = options.seed[options.seed.size() == 1 ? 0 : i];
    }
    return seeds;
}

} // namespace q2export::runtime
