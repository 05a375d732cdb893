// The few types and functions of the CUDA runtime that the sources need, on the host.
#pragma once

#include <cstddef>
#include <cstring>

typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;

enum cudaError_t
{
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidDevice = 101
};

enum cudaMemcpyKind
{
    cudaMemcpyDeviceToDevice = 3
};

inline char const* cudaGetErrorString(cudaError_t error)
{
    switch (error)
    {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    }
    return "unrecognized error code";
}

inline cudaError_t cudaMemcpyAsync(void* target, void const* source, size_t bytes, cudaMemcpyKind, cudaStream_t)
{
    std::memcpy(target, source, bytes);
    return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t)
{
    std::memset(target, value, bytes);
    return cudaSuccess;
}
