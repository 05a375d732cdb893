// Feeding prompts of different lengths to an engine in few calls with little padding (runtime/prefill.py).
#pragma once

#include <cstddef>
#include <vector>

namespace q2export::runtime
{

// One call over the first `rows` rows: their tokens from `far` before the end of each prompt up to `near`.
struct PrefillCall
{
    size_t rows;
    size_t far;
    size_t near;
};

// Cut prompts into calls; all end in the last one, the only one asked for logits. lengths: longest first, each at least
// 1. chunk: of the widest call.
std::vector<PrefillCall> plan_prefill(std::vector<size_t> const& lengths, size_t chunk);

} // namespace q2export::runtime
