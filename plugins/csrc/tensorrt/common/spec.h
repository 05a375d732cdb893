// The op specification (q2export/contracts/opspec.py) as constant tables.
#pragma once

#include <cstddef>
#include <cstdint>

namespace q2export
{

enum class ElementType : int32_t
{
    kT, // the graph's floating-point type
    kF, // float32
    kS, // float16: scales
    kP, // int32: packed codes
    kL, // int64
};

enum class AttributeType : int32_t
{
    kInt,
    kFloat,
};

// A constant array and its length.
template <typename Row>
class Table
{
public:
    constexpr Table() = default;

    template <size_t kSize>
    constexpr Table(Row const (&rows)[kSize])
        : rows_(rows)
        , size_(static_cast<int32_t>(kSize))
    {
    }

    constexpr int32_t size() const
    {
        return size_;
    }

    constexpr Row const& operator[](int32_t index) const
    {
        return rows_[index];
    }

    constexpr Row const* begin() const
    {
        return rows_;
    }

    constexpr Row const* end() const
    {
        return rows_ + size_;
    }

private:
    Row const* rows_ = nullptr;
    int32_t size_ = 0;
};

enum class Symbol : int32_t;

struct TensorSpec
{
    static constexpr int32_t kMaxRank = 4;

    char const* name;
    ElementType element_type;
    int32_t rank;
    Symbol shape[kMaxRank];
};

struct AttributeSpec
{
    char const* name;
    AttributeType type;
};

// The output that updates an input in place.
struct AliasSpec
{
    int32_t output;
    int32_t input;
};

struct OpSpec
{
    char const* name;
    Table<TensorSpec> inputs;
    Table<TensorSpec> repeated; // follow the inputs once per expert
    Table<TensorSpec> outputs;
    Table<AttributeSpec> attributes;
    Table<AliasSpec> aliases;
};

#include "common/spec.inc"

constexpr int32_t kSymbolCount = static_cast<int32_t>(sizeof(kSymbolNames) / sizeof(kSymbolNames[0]));

constexpr char const* symbol_name(Symbol symbol)
{
    return kSymbolNames[static_cast<int32_t>(symbol)];
}

// The specification of input `index`, fixed or repeated.
constexpr TensorSpec const& input_spec(OpSpec const& spec, int32_t index)
{
    return index < spec.inputs.size() ? spec.inputs[index]
                                      : spec.repeated[(index - spec.inputs.size()) % spec.repeated.size()];
}

} // namespace q2export
