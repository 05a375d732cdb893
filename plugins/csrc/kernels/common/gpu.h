// What the heuristics know of a GPU. They are pure functions of shapes and this.
#pragma once

#include <cstdint>

#include "q2export/kernels.h"

namespace q2export
{

struct Gpu
{
    int32_t compute_capability; // 90 for 9.0
    int32_t multiprocessors;
    int32_t shared_bytes_per_block; // with the opt-in
    int32_t shared_bytes_per_multiprocessor;
    int64_t l2_bytes;
};

// Whether this library holds code for sm_90a: instructions of Hopper that are in no other code, also not in the PTX
// that a Hopper runs where its own code is missing. A plan that needs them asks for this and for 9.0.
#if defined(Q2EXPORT_HAS_SM90A)
constexpr bool kHasSm90a = true;
#else
constexpr bool kHasSm90a = false;
#endif

// The current device; asked of the driver once per device. Safe to call while a stream is being captured.
q2export_status current_gpu(Gpu* gpu);

} // namespace q2export
