#include "common/gpu.h"

#include <array>
#include <mutex>

#include <cuda_runtime.h>

#include "common/error.h"

namespace q2export
{
namespace
{

constexpr int kMaxDevices = 64;

q2export_status read_attribute(int32_t* value, cudaDeviceAttr attribute, int device)
{
    return cuda_status(cudaDeviceGetAttribute(value, attribute, device));
}

q2export_status read_gpu(int device, Gpu* gpu)
{
    int32_t major = 0;
    int32_t minor = 0;
    int32_t l2_bytes = 0;
    Q2EXPORT_TRY(read_attribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    Q2EXPORT_TRY(read_attribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    Q2EXPORT_TRY(read_attribute(&gpu->multiprocessors, cudaDevAttrMultiProcessorCount, device));
    Q2EXPORT_TRY(read_attribute(&gpu->shared_bytes_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    Q2EXPORT_TRY(read_attribute(
        &gpu->shared_bytes_per_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device));
    Q2EXPORT_TRY(read_attribute(&l2_bytes, cudaDevAttrL2CacheSize, device));
    gpu->compute_capability = major * 10 + minor;
    gpu->l2_bytes = l2_bytes;
    return Q2EXPORT_SUCCESS;
}

} // namespace

q2export_status current_gpu(Gpu* gpu)
{
    static std::mutex mutex;
    static std::array<Gpu, kMaxDevices> known{}; // no multiprocessors: not asked for yet
    int device = 0;
    Q2EXPORT_TRY(cuda_status(cudaGetDevice(&device)));
    if (device >= kMaxDevices)
    {
        return read_gpu(device, gpu);
    }
    std::lock_guard<std::mutex> const lock(mutex);
    if (known[device].multiprocessors == 0)
    {
        Gpu found{};
        Q2EXPORT_TRY(read_gpu(device, &found));
        known[device] = found;
    }
    *gpu = known[device];
    return Q2EXPORT_SUCCESS;
}

} // namespace q2export
