// What linear layers multiply, in the form that the selected instruction set reads.
#pragma once

#include <cstddef>

#include "linear/linear.h"

namespace q2export::cpu
{

// Refuses activations that no kernel has for weights of a type.
q2export_status check_activations(char const* op, q2export_cpu_activations activations, q2export_dtype weight_dtype);

// Rows as they are, or rounded to bfloat16 (to nearest, ties to even): its bits where there are instructions that multiply
// them, else widened again.
class InputRows
{
public:
    // `memory`: `bytes` of it, at a multiple of four.
    InputRows(q2export_cpu_activations activations, void* memory, int64_t width);

    static size_t bytes(q2export_cpu_activations activations, int64_t rows, int64_t width);

    // Puts a row in its place, from `source` [width], which may be that place where rows stay as they are. Tasks may do so
    // side by side.
    void put(int64_t row, float const* source) const;

    // Has a layer multiply the rows from `first` on.
    void feed(int64_t first, Linear& linear) const;

private:
    bool is_rounded_;
    void (*round_)(float const* source, int64_t count, uint16_t* target); // null where rows are widened again
    void* memory_;
    int64_t width_;
};

} // namespace q2export::cpu
