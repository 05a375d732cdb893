// Kernels with one mistake each, for test_host_cuda.py: a program that runs the one it is told to, and should not end
// well.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>

#include "common/launch.cuh"
#include "common/ptx.cuh"

namespace
{

using namespace q2export;

constexpr unsigned kAll = 0xFFFFFFFFU;
constexpr int kThreads64 = 64;

struct Buffers
{
    float const* in; // 256 floats, aligned to 16 bytes
    float* out;
};

__global__ void diverged_shuffle(Buffers buffers)
{
    if (threadIdx.x % 32 < 16)
    {
        buffers.out[threadIdx.x] = __shfl_xor_sync(kAll, 1.0F, 1);
    }
    else
    {
        buffers.out[threadIdx.x] = __shfl_xor_sync(kAll, 2.0F, 1);
    }
}

__global__ void returned_before_mma(Buffers buffers)
{
    if (threadIdx.x == 37)
    {
        return;
    }
    float sums[4] = {};
    uint32_t const a[4] = {};
    uint32_t const b[2] = {};
    mma_m16n8k16<__half>(sums, a, b);
    buffers.out[threadIdx.x] = sums[0];
}

__global__ void barrier_instead_of_shuffle(Buffers)
{
    if (threadIdx.x < 8)
    {
        __syncthreads();
    }
    else
    {
        __syncwarp();
    }
}

__global__ void returned_before_barrier(Buffers)
{
    if (threadIdx.x >= 32)
    {
        return;
    }
    __syncthreads();
}

__global__ void two_barriers(Buffers)
{
    if (threadIdx.x < 32)
    {
        __syncthreads();
    }
    else
    {
        __syncthreads();
    }
}

__global__ void not_in_mask(Buffers buffers)
{
    buffers.out[threadIdx.x] = __shfl_sync(0xFFFFU, 1.0F, 0);
}

__global__ void from_outside_mask(Buffers buffers)
{
    if (threadIdx.x % 32 < 16)
    {
        buffers.out[threadIdx.x] = __shfl_sync(0xFFFFU, 1.0F, 20);
    }
}

__global__ void misaligned_copy(Buffers buffers)
{
    copy_async_16(dynamic_shared() + threadIdx.x * 16, buffers.in + 1);
}

__global__ void copy_to_global(Buffers buffers)
{
    copy_async_16(buffers.out, buffers.in);
}

__global__ void unfinished_copy(Buffers buffers)
{
    copy_async_16(dynamic_shared(), buffers.in);
    copy_async_commit();
}

__global__ void misaligned_matrix(Buffers buffers)
{
    uint32_t registers[4];
    load_matrix_x4(registers, dynamic_shared() + 8);
    buffers.out[threadIdx.x] = static_cast<float>(registers[0]);
}

__global__ void matrix_in_global(Buffers buffers)
{
    uint32_t registers[4];
    load_matrix_x4(registers, buffers.in);
    buffers.out[threadIdx.x] = static_cast<float>(registers[0]);
}

__global__ void beyond_dynamic_shared(Buffers buffers)
{
    dynamic_shared()[1024 + threadIdx.x % 4] = static_cast<unsigned char>(buffers.in[0]);
}

__global__ void beyond_static_shared(Buffers buffers)
{
    __shared__ float shared[20];
    float* const pointer = shared;
    pointer[threadIdx.x % 21] = buffers.in[0];
    buffers.out[threadIdx.x] = shared[0];
}

__global__ void copy_beyond_source(Buffers buffers)
{
    copy_async_16(dynamic_shared(), buffers.in + 256);
    copy_async_commit();
    copy_async_wait<0>();
}

using Kernel = void (*)(Buffers);

struct Mistake
{
    char const* name;
    Kernel kernel;
};

constexpr Mistake kMistakes[] = {{"diverged_shuffle", diverged_shuffle}, {"returned_before_mma", returned_before_mma},
    {"barrier_instead_of_shuffle", barrier_instead_of_shuffle}, {"returned_before_barrier", returned_before_barrier},
    {"two_barriers", two_barriers}, {"not_in_mask", not_in_mask}, {"from_outside_mask", from_outside_mask},
    {"misaligned_copy", misaligned_copy}, {"copy_to_global", copy_to_global}, {"unfinished_copy", unfinished_copy},
    {"misaligned_matrix", misaligned_matrix}, {"matrix_in_global", matrix_in_global},
    {"beyond_dynamic_shared", beyond_dynamic_shared}, {"beyond_static_shared", beyond_static_shared},
    {"copy_beyond_source", copy_beyond_source}};

} // namespace

int main(int, char** arguments)
{
    for (Mistake const& mistake : kMistakes)
    {
        if (std::strcmp(mistake.name, arguments[1]) == 0)
        {
            std::unique_ptr<float4[]> const in(new float4[64]());
            std::unique_ptr<float4[]> const out(new float4[64]());
            launch(nullptr, LaunchShape{1, 1, 1, kThreads64, 1024}, mistake.kernel, Buffers{&in[0].x, &out[0].x});
            return 0;
        }
    }
    std::fprintf(stderr, "no mistake is called %s\n", arguments[1]);
    return 2;
}
