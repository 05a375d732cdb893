#include "common/error.h"

#include <cstdarg>
#include <cstdio>

namespace q2export
{
namespace
{

char* message_buffer(size_t* size)
{
    constexpr size_t kSize = 256;
    static thread_local char buffer[kSize] = "";
    *size = kSize;
    return buffer;
}

} // namespace

q2export_status fail(q2export_status status, char const* format, ...)
{
    size_t size = 0;
    char* const buffer = message_buffer(&size);
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(buffer, size, format, arguments);
    va_end(arguments);
    return status;
}

q2export_status cuda_status(cudaError_t error)
{
    return error == cudaSuccess ? Q2EXPORT_SUCCESS : fail(Q2EXPORT_CUDA_ERROR, "CUDA: %s", cudaGetErrorString(error));
}

} // namespace q2export

extern "C" int32_t q2export_kernels_abi_version(void)
{
    return Q2EXPORT_KERNELS_ABI_VERSION;
}

extern "C" char const* q2export_status_string(q2export_status status)
{
    switch (status)
    {
    case Q2EXPORT_SUCCESS: return "success";
    case Q2EXPORT_INVALID_ARGUMENT: return "invalid argument";
    case Q2EXPORT_UNSUPPORTED: return "unsupported";
    case Q2EXPORT_WORKSPACE_TOO_SMALL: return "workspace too small";
    case Q2EXPORT_CUDA_ERROR: return "CUDA error";
    default: return "unknown status";
    }
}

extern "C" char const* q2export_last_error(void)
{
    size_t size = 0;
    return q2export::message_buffer(&size);
}
