// What one op adds to the generic plugin: its way into the C ABI of the kernels.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

#include "common/attributes.h"
#include "common/sizes.h"
#include "common/spec.h"
#include "q2export/kernels.h"

namespace q2export
{

// One op on tensors of known sizes.
struct Call
{
    Attributes const& attributes;
    Sizes const& sizes;
    q2export_dtype dtype;
};

// Device memory, inputs and outputs in the order of the specification.
struct Buffers
{
    void const* const* inputs;
    void* const* outputs;
    void* workspace;
    size_t workspace_bytes;
    cudaStream_t stream;

    template <typename Element = void>
    Element const* input(int32_t index) const
    {
        return static_cast<Element const*>(inputs[index]);
    }
};

// A size that must equal an attribute.
struct Tie
{
    Symbol symbol;
    char const* attribute;
};

struct Op
{
    OpSpec const& spec;
    Table<Tie> ties;
    q2export_status (*workspace_size)(Call const& call, size_t* bytes);
    q2export_status (*enqueue)(Call const& call, Buffers const& buffers);
    // Works out sizes from others and the attributes, where shapes are formulas of them; throws Refusal where they
    // contradict each other.
    void (*relate)(Sizes& sizes, Attributes const& attributes) = nullptr;
};

extern Op const kRotaryEmbedding;
extern Op const kGroupQueryAttention;
extern Op const kRotaryAttention;
extern Op const kMoE;
extern Op const kQuantizedMoE;

} // namespace q2export
