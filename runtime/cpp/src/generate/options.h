// What a caller may ask of generation: the options that runtime/options.py declares.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace q2export::runtime
{

// How a text is generated; the defaults are those of transformers.
struct GenerationOptions
{
#define Q2EXPORT_TYPE(...) __VA_ARGS__
#define Q2EXPORT_OPTION(name, type, initial, low, high, above, expected, meaning) type name = initial;
#include "generated/options.inc"
#undef Q2EXPORT_OPTION
#undef Q2EXPORT_TYPE

    // Whether the likeliest token is taken.
    bool greedy() const
    {
        return !do_sample || temperature == 0;
    }
};

// As a caller gives it.
using OptionValue
    = std::variant<int64_t, double, bool, std::vector<uint64_t>, std::vector<std::string>, std::map<int64_t, double>>;

// Options by name as a caller gives them, each checked when it is set.
class GivenOptions
{
public:
    // Throws GenerationError: no option of that name, or a value out of its range.
    void set(std::string const& name, OptionValue value);

    bool has(std::string const& name) const
    {
        return values_.count(name) != 0;
    }

    // `defaults` with these values. `temperature`, `top_k`, `top_p` or `min_p` without `do_sample` asks to sample.
    // Throws GenerationError where two contradict each other.
    GenerationOptions over(GenerationOptions const& defaults) const;

private:
    std::map<std::string, OptionValue> values_;
};

// One seed per prompt; a single one serves each, so that a text does not depend on the batch. Throws GenerationError.
std::vector<std::optional<uint64_t>> seeds_of(GenerationOptions const& options, size_t prompts);

} // namespace q2export::runtime
