// Statuses with a message, kept per thread, and the checks of arguments that every op shares.
#pragma once

#include <cstdint>

#include "q2export/cpu.h"

namespace q2export::cpu
{

// Records the message (as printf formats it) for q2export_cpu_last_error and returns `status`.
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
q2export_status fail(q2export_status status, char const* format, ...);

// No tensor has this many elements; products of sizes below it do not overflow.
constexpr int64_t kMaxElements = int64_t{1} << 46;

// Refuses `value` outside minimum .. maximum.
q2export_status check_range(char const* op, char const* name, int64_t value, int64_t minimum, int64_t maximum);

// Refuses a `value` that is no multiple of `divisor`.
q2export_status check_multiple(char const* op, char const* name, int64_t value, int64_t divisor);

q2export_status check_pointer(char const* op, char const* name, void const* pointer);

// Refuses a product of sizes, each already checked to be below 2^31, that exceeds kMaxElements.
q2export_status check_elements(char const* op, char const* name, int64_t rows, int64_t columns, int64_t depth = 1);

} // namespace q2export::cpu

// Returns from the enclosing function unless `call` succeeds.
#define Q2EXPORT_TRY(call)                                                                                             \
    do                                                                                                                 \
    {                                                                                                                  \
        q2export_status const status_ = (call);                                                                        \
        if (status_ != Q2EXPORT_SUCCESS)                                                                               \
        {                                                                                                              \
            return status_;                                                                                            \
        }                                                                                                              \
    } while (false)
