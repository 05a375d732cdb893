// Kernels that show what the host mapping does, one thing each, for test_emulation.py.
#include <cstddef>
#include <cstdint>

#include "common/launch.cuh"
#include "common/ptx.cuh"

namespace
{

using namespace q2export;

constexpr unsigned kAll = 0xFFFFFFFFU;

// By lane: a [32][4], b [32][2], accumulator [32][4].
template <typename Element>
__global__ void mma_kernel(uint32_t const* a, uint32_t const* b, float* accumulator)
{
    unsigned const lane = threadIdx.x;
    uint32_t a_registers[4];
    uint32_t b_registers[2];
    float sums[4];
    for (unsigned i = 0; i < 4; ++i)
    {
        a_registers[i] = a[lane * 4 + i];
        sums[i] = accumulator[lane * 4 + i];
    }
    b_registers[0] = b[lane * 2];
    b_registers[1] = b[lane * 2 + 1];
    mma_m16n8k16<Element>(sums, a_registers, b_registers);
    for (unsigned i = 0; i < 4; ++i)
    {
        accumulator[lane * 4 + i] = sums[i];
    }
}

enum class Load
{
    kX4,
    kX4Transposed,
    kX2
};

// Row r of the matrices is 16 bytes at `offsets[r]` of `memory`, which is copied to shared memory; registers [32][4].
__global__ void load_matrix_kernel(
    Load kind, unsigned char const* memory, int32_t bytes, int32_t const* offsets, uint32_t* registers)
{
    unsigned char* const shared = dynamic_shared();
    for (int32_t i = static_cast<int32_t>(threadIdx.x) * 16; i < bytes; i += 32 * 16)
    {
        copy_async_16(shared + i, memory + i);
    }
    copy_async_commit();
    copy_async_wait<0>();
    __syncwarp();
    unsigned char const* const row = shared + offsets[threadIdx.x];
    uint32_t loaded[4] = {};
    uint32_t loaded_two[2] = {};
    switch (kind)
    {
    case Load::kX4: load_matrix_x4(loaded, row); break;
    case Load::kX4Transposed: load_matrix_x4_transposed(loaded, row); break;
    case Load::kX2:
        load_matrix_x2(loaded_two, row);
        loaded[0] = loaded_two[0];
        loaded[1] = loaded_two[1];
        break;
    }
    for (unsigned i = 0; i < 4; ++i)
    {
        registers[threadIdx.x * 4 + i] = loaded[i];
    }
}

constexpr int kGroups = 4;

// One thread copies kGroups times four floats, one group each, the last as zeros; seen [5][kGroups]: their first floats
// before any wait, then after waits that leave 3, 2, 1 and 0 groups.
__global__ void copy_kernel(float const* source, float* seen)
{
    float* const shared = reinterpret_cast<float*>(dynamic_shared());
    auto const look = [&](int row) {
        for (int g = 0; g < kGroups; ++g)
        {
            seen[row * kGroups + g] = shared[g * 4];
        }
    };
    for (int g = 0; g < kGroups; ++g)
    {
        shared[g * 4] = -1.0F;
        copy_async_16(shared + g * 4, source + g * 4, g != kGroups - 1);
        copy_async_commit();
    }
    look(0);
    copy_async_wait<3>();
    look(1);
    copy_async_wait<2>();
    look(2);
    copy_async_wait<1>();
    look(3);
    copy_async_wait<0>();
    look(4);
}

// A copy that was started but not committed is in no group.
__global__ void uncommitted_copy_kernel(float const* source, float* seen)
{
    float* const shared = reinterpret_cast<float*>(dynamic_shared());
    copy_async_16(shared, source);
    copy_async_wait<0>();
    seen[0] = shared[0];
    copy_async_commit();
    copy_async_wait<0>();
    seen[1] = shared[0];
}

// results [12][32]
__global__ void warp_kernel(int const* values, int argument, int width, int* results)
{
    int const lane = static_cast<int>(threadIdx.x);
    int const value = values[lane];
    int row = 0;
    auto const put = [&](int result) { results[row++ * 32 + lane] = result; };
    put(__shfl_sync(kAll, value, argument, width));
    put(__shfl_xor_sync(kAll, value, argument, width));
    put(__shfl_up_sync(kAll, value, static_cast<unsigned>(argument), width));
    put(__shfl_down_sync(kAll, value, static_cast<unsigned>(argument), width));
    put(static_cast<int>(__ballot_sync(kAll, value > 0)));
    put(__any_sync(kAll, value == 3));
    put(__all_sync(kAll, value > -100));
    put(__reduce_add_sync(kAll, value));
    put(__reduce_max_sync(kAll, value));
    put(__reduce_min_sync(kAll, value));
    put(static_cast<int>(__match_any_sync(kAll, value)));
    // Halves of a warp that meet among themselves only.
    unsigned const half = lane < 16 ? 0x0000FFFFU : 0xFFFF0000U;
    put(lane < 16 ? __shfl_xor_sync(half, value, 1) : __shfl_xor_sync(half, value, 2));
}

// counts: per block, of the positive values; a barrier that counts.
__global__ void count_kernel(int const* values, int* counts)
{
    int const index = static_cast<int>(element_index());
    int const count = __syncthreads_count(values[index] > 0);
    int const any = __syncthreads_or(values[index] > 0);
    int const all = __syncthreads_and(values[index] > 0);
    counts[index] = count * 4 + any * 2 + all;
}

// y = x reversed within the block, through shared memory.
template <bool kBarrier>
__global__ void reverse_kernel(float const* x, float* y)
{
    float* const shared = reinterpret_cast<float*>(dynamic_shared());
    int64_t const index = element_index();
    shared[threadIdx.x] = x[index];
    if (kBarrier)
    {
        __syncthreads();
    }
    y[index] = shared[blockDim.x - 1 - threadIdx.x];
}

// The first warp writes, the others read.
template <bool kBarrier>
__global__ void broadcast_kernel(float const* x, float* y)
{
    float* const shared = reinterpret_cast<float*>(dynamic_shared());
    if (threadIdx.x < 32)
    {
        shared[threadIdx.x] = x[threadIdx.x];
    }
    if (kBarrier)
    {
        __syncthreads();
    }
    y[threadIdx.x] = shared[threadIdx.x % 32];
}

// Within a warp, as above.
template <bool kBarrier>
__global__ void exchange_kernel(float const* x, float* y)
{
    __shared__ float shared[32];
    shared[threadIdx.x] = x[threadIdx.x];
    if (kBarrier)
    {
        __syncwarp();
    }
    y[threadIdx.x] = shared[threadIdx.x / 2];
}

// order [threads]: the threads of a block as they ran.
__global__ void order_kernel(int* next, int* order)
{
    order[atomicAdd(next, 1)] = static_cast<int>(threadIdx.x);
}

// numbers [z][y][x][thread]
__global__ void index_kernel(int* numbers)
{
    unsigned const block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    numbers[block * blockDim.x + threadIdx.x] += static_cast<int>(block * blockDim.x + threadIdx.x);
}

__global__ void pack_kernel(float low, float high, uint32_t* packed, float* unpacked)
{
    packed[0] = pack2<__half>(low, high);
    packed[1] = pack2<__nv_bfloat16>(low, high);
    float2 const half = unpack2<__half>(packed[0]);
    float2 const bfloat16 = unpack2<__nv_bfloat16>(packed[1]);
    unpacked[0] = half.x;
    unpacked[1] = half.y;
    unpacked[2] = bfloat16.x;
    unpacked[3] = bfloat16.y;
    unpacked[4] = exp2_fast(low);
}

} // namespace

extern "C" int32_t probe_mma(int32_t is_bfloat16, uint32_t const* a, uint32_t const* b, float* accumulator)
{
    auto* const kernel = is_bfloat16 != 0 ? mma_kernel<__nv_bfloat16> : mma_kernel<__half>;
    return launch(nullptr, LaunchShape{1, 1, 1, 32}, kernel, a, b, accumulator);
}

extern "C" int32_t probe_load_matrix(
    int32_t kind, unsigned char const* memory, int32_t bytes, int32_t const* offsets, uint32_t* registers)
{
    return launch(nullptr, LaunchShape{1, 1, 1, 32, static_cast<size_t>(bytes)}, load_matrix_kernel,
        static_cast<Load>(kind), memory, bytes, offsets, registers);
}

extern "C" int32_t probe_copy(float const* source, float* seen)
{
    return launch(nullptr, LaunchShape{1, 1, 1, 1, kGroups * 16}, copy_kernel, source, seen);
}

extern "C" int32_t probe_uncommitted_copy(float const* source, float* seen)
{
    return launch(nullptr, LaunchShape{1, 1, 1, 1, 16}, uncommitted_copy_kernel, source, seen);
}

extern "C" int32_t probe_warp(int const* values, int32_t argument, int32_t width, int* results)
{
    return launch(nullptr, LaunchShape{1, 1, 1, 32}, warp_kernel, values, argument, width, results);
}

extern "C" int32_t probe_count(int const* values, int32_t blocks, int32_t threads, int* counts)
{
    return launch(nullptr, LaunchShape{blocks, 1, 1, threads}, count_kernel, values, counts);
}

extern "C" int32_t probe_reverse(int32_t barrier, float const* x, int32_t blocks, int32_t threads, float* y)
{
    LaunchShape const shape{blocks, 1, 1, threads, static_cast<size_t>(threads) * sizeof(float)};
    return launch(nullptr, shape, barrier != 0 ? reverse_kernel<true> : reverse_kernel<false>, x, y);
}

extern "C" int32_t probe_broadcast(int32_t barrier, float const* x, int32_t, int32_t threads, float* y)
{
    LaunchShape const shape{1, 1, 1, threads, 32 * sizeof(float)};
    return launch(nullptr, shape, barrier != 0 ? broadcast_kernel<true> : broadcast_kernel<false>, x, y);
}

extern "C" int32_t probe_exchange(int32_t barrier, float const* x, int32_t, int32_t, float* y)
{
    return launch(
        nullptr, LaunchShape{1, 1, 1, 32}, barrier != 0 ? exchange_kernel<true> : exchange_kernel<false>, x, y);
}

extern "C" int32_t probe_order(int32_t threads, int* next, int* order)
{
    return launch(nullptr, LaunchShape{1, 1, 1, threads}, order_kernel, next, order);
}

extern "C" int32_t probe_index(int32_t x, int32_t y, int32_t z, int32_t threads, int* numbers)
{
    return launch(nullptr, LaunchShape{x, y, z, threads}, index_kernel, numbers);
}

extern "C" int32_t probe_pack(float low, float high, uint32_t* packed, float* unpacked)
{
    return launch(nullptr, LaunchShape{1, 1, 1, 1}, pack_kernel, low, high, packed, unpacked);
}

// A launch with this much dynamic shared memory, of a kernel that does not ask for it through launch().
extern "C" int32_t probe_shared_limit(int32_t bytes, int32_t opt_in)
{
    auto* const kernel = reverse_kernel<true>;
    if (opt_in != 0)
    {
        Q2EXPORT_TRY(cuda_status(cudaFuncSetAttribute(
            reinterpret_cast<void const*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)));
    }
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(1);
    config.blockDim = dim3(1);
    config.dynamicSmemBytes = static_cast<size_t>(bytes);
    float x = 1.0F;
    float y = 0.0F;
    return cuda_status(cudaLaunchKernelEx(&config, kernel, static_cast<float const*>(&x), &y));
}
