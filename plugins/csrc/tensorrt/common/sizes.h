// Values of the symbols in an op's shapes.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>

#include <NvInferRuntime.h>

#include "common/spec.h"

namespace q2export
{

class Sizes
{
public:
    static constexpr int64_t kUnknown = -1;

    // All symbols have the value `size`.
    explicit Sizes(int64_t size = kUnknown)
    {
        values_.fill(size);
    }

    int64_t& operator[](Symbol symbol)
    {
        return values_[static_cast<size_t>(symbol)];
    }

    int64_t operator[](Symbol symbol) const
    {
        return values_[static_cast<size_t>(symbol)];
    }

private:
    std::array<int64_t, kSymbolCount> values_;
};

// Name of an input; repeated ones are numbered, e.g. "gate_3".
std::string input_name(OpSpec const& spec, int32_t index);

// Throws Refusal: `what` is `found`, but `expected` elsewhere.
[[noreturn]] void refuse_size(std::string const& what, int64_t found, int64_t expected);

// Throws Refusal where two known sizes differ; what() names the second, and is called for that alone: every call of a
// plugin comes through here. `expected` stays unknown only if both are.
template <typename What>
void unify(int64_t& expected, int64_t found, What const& what)
{
    if (found < 0)
    {
        return;
    }
    if (expected < 0)
    {
        expected = found;
    }
    if (expected != found)
    {
        refuse_size(what(), found, expected);
    }
}

// Reads all symbols off the inputs, of which there are `count`; negative dimensions are unknown. Throws Refusal where
// ranks are wrong or two inputs contradict each other.
Sizes bind_sizes(
    OpSpec const& spec, int32_t count, std::function<nvinfer1::Dims const&(int32_t)> const& dims_of_input);

} // namespace q2export
