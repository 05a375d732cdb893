// Kernels with one mistake each, for test_mistakes.py: a program that runs the one it is told to, and should not end
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

__global__ void shuffle_is_no_barrier(Buffers buffers)
{
    __shared__ float shared[64];
    shared[threadIdx.x] = 0.0F;
    __syncthreads();
    shared[threadIdx.x] = buffers.in[threadIdx.x];
    float const other = __shfl_xor_sync(kAll, 1.0F, 1);
    buffers.out[blockIdx.x * 64 + threadIdx.x] = other + shared[threadIdx.x ^ 1];
}

__global__ void matrix_without_barrier(Buffers buffers)
{
    reinterpret_cast<float4*>(dynamic_shared())[threadIdx.x] = make_float4(buffers.in[0], 0.0F, 0.0F, 0.0F);
    uint32_t registers[4];
    load_matrix_x4(registers, dynamic_shared() + threadIdx.x * 16);
    buffers.out[blockIdx.x * 64 + threadIdx.x] = static_cast<float>(registers[0]);
}

__global__ void copy_without_barrier(Buffers buffers)
{
    reinterpret_cast<float4*>(dynamic_shared())[threadIdx.x] = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
    __syncthreads();
    copy_async_16(dynamic_shared() + threadIdx.x * 16, buffers.in + threadIdx.x * 4);
    copy_async_commit();
    copy_async_wait<0>();
    __syncwarp();
    buffers.out[blockIdx.x * 64 + threadIdx.x] = reinterpret_cast<float*>(dynamic_shared())[(threadIdx.x ^ 32) * 4];
}

__global__ void overwritten_while_read(Buffers buffers)
{
    float* const shared = reinterpret_cast<float*>(dynamic_shared());
    shared[threadIdx.x] = buffers.in[threadIdx.x];
    __syncthreads();
    buffers.out[blockIdx.x * 64 + threadIdx.x] = shared[63 - threadIdx.x];
    shared[threadIdx.x] = 0.0F;
}

__global__ void two_writers(Buffers buffers)
{
    buffers.out[threadIdx.x] = 1.0F;
}

__global__ void unwritten_shared(Buffers buffers)
{
    __shared__ float shared[64];
    shared[threadIdx.x] = buffers.in[threadIdx.x];
    __syncthreads();
    if (blockIdx.x == 0)
    {
        buffers.out[threadIdx.x] = shared[63 - threadIdx.x];
    }
    else
    {
        float* const dynamic = reinterpret_cast<float*>(dynamic_shared());
        dynamic[threadIdx.x] = 0.0F;
        buffers.out[64 + threadIdx.x] = dynamic[threadIdx.x] + dynamic[64 + threadIdx.x];
    }
}

__global__ void left_by_another_block(Buffers buffers)
{
    __shared__ float shared[64];
    if (blockIdx.x == 0)
    {
        shared[threadIdx.x] = buffers.in[threadIdx.x];
    }
    __syncthreads();
    buffers.out[blockIdx.x * 64 + threadIdx.x] = shared[threadIdx.x];
}

// Each block leaves a value; the last one to come adds them up.
template <bool kFence>
__global__ void last_block_sums(Buffers buffers)
{
    unsigned* const arrived = reinterpret_cast<unsigned*>(buffers.out);
    __shared__ bool is_last;
    buffers.out[128 + blockIdx.x * 64 + threadIdx.x] = buffers.in[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0)
    {
        if (kFence)
        {
            __threadfence();
        }
        is_last = atomicAdd(arrived, 1U) == gridDim.x - 1;
    }
    __syncthreads();
    if (is_last)
    {
        buffers.out[64 + threadIdx.x] = buffers.out[128 + threadIdx.x] + buffers.out[192 + (threadIdx.x ^ 1)];
    }
}

// No mistake: every way to order accesses.
__global__ void ordered_by_barriers(Buffers buffers)
{
    __shared__ float exchanged[64];
    __shared__ float total;
    float* const shared = reinterpret_cast<float*>(dynamic_shared());
    float const value = buffers.in[threadIdx.x];
    for (unsigned mask = 1; mask < 32; mask *= 2)
    {
        exchanged[threadIdx.x] = value;
        __syncwarp();
        float const other = exchanged[threadIdx.x ^ mask];
        __syncwarp();
        exchanged[threadIdx.x] = value + other;
    }
    copy_async_16(shared + threadIdx.x * 4, buffers.in + threadIdx.x * 4);
    copy_async_commit();
    copy_async_wait<0>();
    if (threadIdx.x == 0)
    {
        total = 0.0F;
    }
    __syncthreads();
    uint32_t registers[4];
    load_matrix_x4(registers, shared + threadIdx.x % 32 * 4);
    atomicAdd(&total, shared[(threadIdx.x ^ 33) * 4]);
    __syncthreads();
    shared[threadIdx.x] = total;
    buffers.out[blockIdx.x * 64 + threadIdx.x] = total + exchanged[63 - threadIdx.x];
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
    {"copy_beyond_source", copy_beyond_source}, {"shuffle_is_no_barrier", shuffle_is_no_barrier},
    {"matrix_without_barrier", matrix_without_barrier}, {"copy_without_barrier", copy_without_barrier},
    {"overwritten_while_read", overwritten_while_read}, {"unwritten_shared", unwritten_shared},
    {"left_by_another_block", left_by_another_block}, {"two_writers", two_writers},
    {"last_block_without_fence", last_block_sums<false>}, {"last_block", last_block_sums<true>},
    {"ordered_by_barriers", ordered_by_barriers}};

} // namespace

int main(int, char** arguments)
{
    for (Mistake const& mistake : kMistakes)
    {
        if (std::strcmp(mistake.name, arguments[1]) == 0)
        {
            std::unique_ptr<float4[]> const in(new float4[64]());
            std::unique_ptr<float4[]> const out(new float4[64]());
            launch(nullptr, LaunchShape{2, 1, 1, kThreads64, 1024}, mistake.kernel, Buffers{&in[0].x, &out[0].x});
            return 0;
        }
    }
    std::fprintf(stderr, "no mistake is called %s\n", arguments[1]);
    return 2;
}
