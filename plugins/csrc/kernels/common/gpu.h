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

// The newest architecture this library holds PTX of, 80 for 8.0: what GPUs run that it has no machine code for. Or 0.
#if defined(Q2EXPORT_PTX_ARCHITECTURE)
constexpr int32_t kPtxArchitecture = Q2EXPORT_PTX_ARCHITECTURE;
#else
constexpr int32_t kPtxArchitecture = 0;
#endif

// Whether kernels may be launched while the one before them ends. That takes a GPU of 9.0 or later, and code that was
// compiled for 9.0 or later: in what a newer GPU makes of older PTX, wait_for_previous_kernel waits for nothing. If the
// newest PTX is of 9.0 or later, so is all code that such a GPU runs.
constexpr bool launches_can_overlap(Gpu const& gpu)
{
    bool const has_code = kPtxArchitecture >= 90 || (kHasSm90a && gpu.compute_capability == 90);
    return has_code && gpu.compute_capability >= 90;
}

// The current device; asked of the driver once per device. Safe to call while a stream is being captured.
q2export_status current_gpu(Gpu* gpu);

} // namespace q2export
