// CUDA kernels on the host: the tests compile the .cu sources as C++ with this folder before the toolkit's.
//
// machine/block.h says how blocks run. __shared__ arrays are static; dynamic shared memory is q2export::dynamic_shared.
// Not mapped: TMA, clusters, cooperative groups, blocks that wait for one another.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <type_traits>

#include "cuda_runtime_api.h"
#include "intrinsics.h"
#include "machine/block.h"
#include "machine/device.h"
#include "vector_types.h"
#include "warp.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __grid_constant__

extern dim3 threadIdx;
extern dim3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
constexpr int warpSize = 32;

enum cudaLaunchAttributeID
{
    cudaLaunchAttributeProgrammaticStreamSerialization = 6
};

struct cudaLaunchAttribute
{
    cudaLaunchAttributeID id;
    struct
    {
        int programmaticStreamSerializationAllowed;
    } val;
};

struct cudaLaunchConfig_t
{
    dim3 gridDim;
    dim3 blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute* attrs; // allow more than the host does
    unsigned numAttrs;
};

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(cudaLaunchConfig_t const* config, void (*kernel)(Parameters...), Arguments... arguments)
{
    static_assert((std::is_same_v<std::remove_const_t<Parameters>, std::remove_const_t<Arguments>> && ...));
    cudaError_t const error = host_cuda::check_launch(
        reinterpret_cast<void const*>(kernel), config->gridDim, config->blockDim, config->dynamicSmemBytes);
    if (error == cudaSuccess)
    {
        host_cuda::run_grid(
            config->gridDim, config->blockDim, config->dynamicSmemBytes, [&] { kernel(arguments...); });
    }
    return error;
}
