// plugins/csrc/kernels/common/hopper.cuh for the host: the same functions, found in its place.
#pragma once

#include "common/ptx.cuh"
#include "machine/warpgroup.h"

namespace q2export
{

inline uint32_t shared_address(void const* pointer)
{
    return host_cuda::window_address(pointer);
}

inline void wgmma_fence_shared() {}

inline void wgmma_fence() {}

inline void wgmma_commit()
{
    host_cuda::commit_products();
}

template <int kPending>
inline void wgmma_wait(host_cuda::Site site = host_cuda::here("wgmma.wait_group"))
{
    host_cuda::wait_for_products(site, kPending);
}

template <typename Register, int kCount>
inline void wgmma_keep(Register (&)[kCount][4])
{
}

template <typename Element>
inline void wgmma_m64n128k16(float (&d)[16][4], uint64_t a, uint64_t b, bool accumulate)
{
    host_cuda::start_product({d[0], 128, nullptr, a, b, false, accumulate, host_cuda::widen_all<Element>});
}

template <typename Element>
inline void wgmma_m64n64k16(float (&d)[16][4], uint64_t a, uint64_t b, bool accumulate)
{
    host_cuda::start_product({d[0], 64, nullptr, a, b, false, accumulate, host_cuda::widen_all<Element>});
}

template <typename Element, int kColumns>
inline void wgmma_m64k16(float (&d)[kColumns][4], uint32_t const (&a)[4], uint64_t b)
{
    host_cuda::start_product({d[0], kColumns * 8, a, 0, b, true, true, host_cuda::widen_all<Element>});
}

} // namespace q2export
