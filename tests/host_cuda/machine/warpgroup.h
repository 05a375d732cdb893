// wgmma, from what the PTX ISA says of its operands ("Asynchronous Warpgroup Level Matrix Instructions"), not from how
// the kernels make them.
//
// Products are computed when their group is waited for, not before, and a product that does not accumulate leaves NaN
// until then: a kernel that reads a result, or overwrites an operand, too early gets wrong results.
#pragma once

#include <cstddef>
#include <cstdint>

#include "machine/block.h"
#include "machine/matrix.h"

namespace host_cuda
{

struct Product
{
    float* accumulator; // of this thread: 4 for each 8 columns
    unsigned columns;
    uint32_t const* a; // 4 registers of this thread; null where A is in shared memory
    uint64_t a_descriptor; // rows contiguous along the 16
    uint64_t b_descriptor;
    bool b_by_columns; // contiguous along the columns, else along the 16
    bool accumulate;
    Widen widen;
};

// The address of shared memory a descriptor holds for a pointer into it.
uint32_t window_address(void const* pointer);

void start_product(Product const& product);
void commit_products();
void wait_for_products(Site const& site, size_t pending_groups);

} // namespace host_cuda
