// The pretend GPUs, and what they let a kernel be launched with.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda_runtime_api.h"
#include "vector_types.h"

enum cudaDeviceAttr
{
    cudaDevAttrMaxSharedMemoryPerBlock = 8,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrL2CacheSize = 38,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};

enum cudaFuncAttribute
{
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9
};

cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaFuncSetAttribute(void const* kernel, cudaFuncAttribute attribute, int value);

// Makes a GPU of these sizes the current device, a new one unless there was one; the first one is an H200. A test
// finds this in the library by its name.
extern "C" void host_cuda_set_gpu(int32_t compute_capability, int32_t multiprocessors, int32_t shared_bytes_per_block,
    int32_t shared_bytes_per_multiprocessor, int32_t l2_bytes);

// Another order of threads, see block.h.
extern "C" void host_cuda_set_seed(uint32_t seed);

namespace host_cuda
{

cudaError_t check_launch(void const* kernel, dim3 grid, dim3 block, size_t shared_bytes);

} // namespace host_cuda
