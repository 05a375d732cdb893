#include "machine/device.h"

#include <algorithm>
#include <map>
#include <vector>

namespace host_cuda
{
namespace
{

constexpr int kSharedBytesWithoutOptIn = 48 * 1024;

struct Gpu
{
    int compute_capability;
    int multiprocessors;
    int shared_bytes_per_block;
    int shared_bytes_per_multiprocessor;
    int l2_bytes;

    bool operator==(Gpu const& other) const
    {
        return compute_capability == other.compute_capability && multiprocessors == other.multiprocessors
            && shared_bytes_per_block == other.shared_bytes_per_block
            && shared_bytes_per_multiprocessor == other.shared_bytes_per_multiprocessor && l2_bytes == other.l2_bytes;
    }
};

std::vector<Gpu> gpus{{90, 132, 227 * 1024, 228 * 1024, 50 * 1024 * 1024}};
size_t current = 0;
std::map<void const*, size_t> opted_in; // dynamic shared memory a kernel may have

} // namespace

cudaError_t check_launch(void const* kernel, dim3 grid, dim3 block, size_t shared_bytes)
{
    constexpr unsigned kMaxYZ = 65535;
    constexpr unsigned kMaxThreads = 1024;
    unsigned const threads = block.x * block.y * block.z;
    bool const is_grid = grid.x != 0 && grid.x <= INT32_MAX && grid.y != 0 && grid.y <= kMaxYZ && grid.z != 0
        && grid.z <= kMaxYZ;
    if (!is_grid || threads == 0 || threads > kMaxThreads || block.z > 64)
    {
        return cudaErrorInvalidConfiguration;
    }
    auto const found = opted_in.find(kernel);
    size_t const limit = std::max<size_t>(kSharedBytesWithoutOptIn, found == opted_in.end() ? 0 : found->second);
    return shared_bytes > limit ? cudaErrorInvalidValue : cudaSuccess;
}

} // namespace host_cuda

cudaError_t cudaGetDevice(int* device)
{
    *device = static_cast<int>(host_cuda::current);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device)
{
    if (device < 0 || static_cast<size_t>(device) >= host_cuda::gpus.size())
    {
        return cudaErrorInvalidDevice;
    }
    host_cuda::Gpu const& gpu = host_cuda::gpus[static_cast<size_t>(device)];
    switch (attribute)
    {
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = host_cuda::kSharedBytesWithoutOptIn; return cudaSuccess;
    case cudaDevAttrMultiProcessorCount: *value = gpu.multiprocessors; return cudaSuccess;
    case cudaDevAttrL2CacheSize: *value = gpu.l2_bytes; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = gpu.compute_capability / 10; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = gpu.compute_capability % 10; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = gpu.shared_bytes_per_multiprocessor;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = gpu.shared_bytes_per_block; return cudaSuccess;
    }
    return cudaErrorInvalidValue;
}

cudaError_t cudaFuncSetAttribute(void const* kernel, cudaFuncAttribute attribute, int value)
{
    if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize)
    {
        if (value < 0 || value > host_cuda::gpus[host_cuda::current].shared_bytes_per_block)
        {
            return cudaErrorInvalidValue;
        }
        host_cuda::opted_in[kernel] = static_cast<size_t>(value);
    }
    return cudaSuccess;
}

extern "C" void host_cuda_set_gpu(int32_t compute_capability, int32_t multiprocessors, int32_t shared_bytes_per_block,
    int32_t shared_bytes_per_multiprocessor, int32_t l2_bytes)
{
    using namespace host_cuda;
    Gpu const wanted{
        compute_capability, multiprocessors, shared_bytes_per_block, shared_bytes_per_multiprocessor, l2_bytes};
    current = static_cast<size_t>(std::find(gpus.begin(), gpus.end(), wanted) - gpus.begin());
    if (current == gpus.size())
    {
        gpus.push_back(wanted);
    }
    opted_in.clear(); // it is per device
}
