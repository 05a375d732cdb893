// Linear layers over weights where they lie: what the instruction sets implement.
#pragma once

#include <cstdint>

#include "common/element.h"
#include "q2export/cpu.h"

namespace q2export::cpu
{

// One call. Strides are in elements.
struct Linear
{
    int64_t rows;
    int64_t in_features;
    int64_t out_features;
    float const* input; // [rows, in_features]
    Bytes weight;       // [out_features, in_features]
    Bytes bias;         // [out_features], or null
    float* output;      // [rows, out_features]
    q2export_dtype weight_dtype;
    q2export_dtype bias_dtype;
    uint16_t const* rounded = nullptr; // the input as bfloat16, where that is what is multiplied
};

// Ranges of a call that one task works on.
struct LinearTask
{
    int64_t first_row;
    int64_t last_row; // one past
    int64_t first_out;
    int64_t last_out;
};

struct LinearKernels
{
    int64_t direct_rows; // up to which `direct` is the faster
    // Reads each weight once, straight into registers.
    void (*direct)(Linear const& linear, LinearTask const& task);
    // Widens a tile of weights into the thread's scratch memory, then multiplies all rows with it.
    void (*packed)(Linear const& linear, LinearTask const& task);
};

// Of an input rounded to bfloat16, over weights of bfloat16.
struct RoundedLinearKernels
{
    LinearKernels linear; // read Linear::rounded
    // To nearest, ties to even.
    void (*round_row)(float const* source, int64_t count, uint16_t* target);
};

extern LinearKernels const kLinearPortable;
extern LinearKernels const kLinearAvx2;
extern LinearKernels const kLinearAvx512;
extern RoundedLinearKernels const kRoundedLinearAvx512; // needs AVX512_BF16

// Runs a call whose arguments have been checked.
void run_linear(Linear const& linear, q2export_cpu_parallel_for const* pool);

// The same call as tasks, for callers that run several at once.
int64_t linear_tasks(Linear const& linear);
void run_linear_task(Linear const& linear, int64_t index);

} // namespace q2export::cpu
