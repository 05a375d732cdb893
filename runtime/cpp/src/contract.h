// What Python declares once: versions, names, limits, the step's inputs and outputs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace q2export::runtime
{

struct SizeLimit
{
    char const* name;
    int64_t largest;
};

struct Dtype
{
    char const* name;
    size_t itemsize;
};

// An input or output of the graph; an axis is a size that changes, or a field of the engine's record.
struct StepTensor
{
    char const* name;
    char const* dtype; // or "kv_dtype"
    size_t rank;
    char const* shape[4];
};

#include "generated/contract.inc"

} // namespace q2export::runtime
