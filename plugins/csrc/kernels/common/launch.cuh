// Launching kernels without the <<<>>> syntax, so that the same sources compile as plain C++ in the tests.
#pragma once

#include <cstdint>

#include <cuda_runtime.h>

#include "common/error.h"
#include "q2export/kernels.h"

namespace q2export
{

constexpr int kThreads = 128; // per block

// Queues `blocks` blocks of kThreads threads; no blocks is no work, not an error.
template <typename... Parameters, typename... Arguments>
q2export_status launch(q2export_stream stream, int64_t blocks, void (*kernel)(Parameters...), Arguments... arguments)
{
    if (blocks == 0)
    {
        return Q2EXPORT_SUCCESS;
    }
    constexpr int64_t kMaxBlocks = INT32_MAX;
    if (blocks > kMaxBlocks)
    {
        return fail(Q2EXPORT_UNSUPPORTED, "%lld thread blocks exceed the grid's limit of %lld",
            static_cast<long long>(blocks), static_cast<long long>(kMaxBlocks));
    }
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(kThreads);
    config.stream = static_cast<cudaStream_t>(stream);
    return cuda_status(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

// Blocks for one thread per element.
inline int64_t blocks_for(int64_t elements)
{
    return (elements + kThreads - 1) / kThreads;
}

// The element of this thread in a launch of blocks_for(elements) blocks.
__device__ inline int64_t element_index()
{
    return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

} // namespace q2export
