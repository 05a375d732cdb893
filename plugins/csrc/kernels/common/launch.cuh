// Launching kernels without the <<<>>> syntax, so that the same sources compile as plain C++ in the tests.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime.h>

#include "common/error.h"
#include "q2export/kernels.h"

namespace q2export
{

constexpr int kThreads = 128; // per block, of kernels with one thread per element

struct LaunchShape
{
    int64_t blocks_x;
    int64_t blocks_y = 1;
    int64_t blocks_z = 1;
    int threads = kThreads;
    size_t shared_bytes = 0; // dynamic
    // Whether the blocks may start while the kernel before this one in the stream still runs, as soon as all blocks of
    // that one have called allow_next_kernel or ended. The kernel calls wait_for_previous_kernel before it touches
    // memory. Needs launches_can_overlap(gpu).
    bool overlaps_previous = false;
};

// Queues a grid; one without blocks is no work, not an error.
template <typename... Parameters, typename... Arguments>
q2export_status launch(
    q2export_stream stream, LaunchShape const& shape, void (*kernel)(Parameters...), Arguments... arguments)
{
    if (shape.blocks_x == 0 || shape.blocks_y == 0 || shape.blocks_z == 0)
    {
        return Q2EXPORT_SUCCESS;
    }
    constexpr int64_t kMaxX = INT32_MAX;
    constexpr int64_t kMaxYZ = 65535;
    if (shape.blocks_x > kMaxX || shape.blocks_y > kMaxYZ || shape.blocks_z > kMaxYZ)
    {
        return fail(Q2EXPORT_UNSUPPORTED, "%lld x %lld x %lld thread blocks exceed the grid's limits",
            static_cast<long long>(shape.blocks_x), static_cast<long long>(shape.blocks_y),
            static_cast<long long>(shape.blocks_z));
    }
    constexpr size_t kWithoutOptIn = 48 * 1024;
    if (shape.shared_bytes > kWithoutOptIn)
    {
        Q2EXPORT_TRY(cuda_status(cudaFuncSetAttribute(reinterpret_cast<void const*>(kernel),
            cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes))));
    }
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(shape.blocks_x), static_cast<unsigned>(shape.blocks_y),
        static_cast<unsigned>(shape.blocks_z));
    config.blockDim = dim3(static_cast<unsigned>(shape.threads));
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    cudaLaunchAttribute overlap{};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &overlap;
    config.numAttrs = shape.overlaps_previous ? 1 : 0;
    return cuda_status(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

// Blocks for one thread per element.
inline LaunchShape one_thread_each(int64_t elements)
{
    return {(elements + kThreads - 1) / kThreads};
}

// The element of this thread in such a launch.
__device__ inline int64_t element_index()
{
    return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

} // namespace q2export
