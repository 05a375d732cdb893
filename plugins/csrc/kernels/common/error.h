// Statuses with a message, kept per thread without allocating.
#pragma once

#include <cuda_runtime.h>

#include "q2export/kernels.h"

namespace q2export
{

// Records the message (as printf formats it) for q2export_last_error and returns `status`.
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
q2export_status fail(q2export_status status, char const* format, ...);

// Turns a CUDA error into a status.
q2export_status cuda_status(cudaError_t error);

} // namespace q2export

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
