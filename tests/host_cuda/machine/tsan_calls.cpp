// What gcc's -fsanitize=thread calls, in the place of its own run-time library.
#include <cstddef>

#include "machine/races.h"

#define HOST_CUDA_ACCESS(bytes)                                                                                        \
    extern "C" void __tsan_read##bytes(void const* address)                                                            \
    {                                                                                                                  \
        host_cuda::record_access(address, bytes, host_cuda::Access::kRead, __builtin_return_address(0));               \
    }                                                                                                                  \
    extern "C" void __tsan_write##bytes(void const* address)                                                           \
    {                                                                                                                  \
        host_cuda::record_access(address, bytes, host_cuda::Access::kWrite, __builtin_return_address(0));              \
    }                                                                                                                  \
    extern "C" void __tsan_unaligned_read##bytes(void const* address)                                                  \
    {                                                                                                                  \
        host_cuda::record_access(address, bytes, host_cuda::Access::kRead, __builtin_return_address(0));               \
    }                                                                                                                  \
    extern "C" void __tsan_unaligned_write##bytes(void const* address)                                                 \
    {                                                                                                                  \
        host_cuda::record_access(address, bytes, host_cuda::Access::kWrite, __builtin_return_address(0));              \
    }

HOST_CUDA_ACCESS(1)
HOST_CUDA_ACCESS(2)
HOST_CUDA_ACCESS(4)
HOST_CUDA_ACCESS(8)
HOST_CUDA_ACCESS(16)

extern "C" void __tsan_read_range(void const* address, size_t bytes)
{
    host_cuda::record_access(address, bytes, host_cuda::Access::kRead, __builtin_return_address(0));
}

extern "C" void __tsan_write_range(void const* address, size_t bytes)
{
    host_cuda::record_access(address, bytes, host_cuda::Access::kWrite, __builtin_return_address(0));
}

extern "C" void __tsan_init()
{
    host_cuda::detect_races();
}

extern "C" void __tsan_func_entry(void const*) {}

extern "C" void __tsan_func_exit() {}

extern "C" void __tsan_vptr_update(void const*, void const*) {}

extern "C" void __tsan_vptr_read(void const*) {}
