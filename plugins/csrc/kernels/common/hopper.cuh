// The warpgroup matrix instructions of Hopper, one function each: PTX ISA 8.0, "Asynchronous Warpgroup Level Matrix
// Instructions". They exist on sm_90a alone: what calls them is compiled for other targets without its body.
//
// A warpgroup is four warps, the first of which has a number divisible by four. Of the 64 rows of an A operand or an
// accumulator its warp w has rows 16 w .. 16 w + 15, with the layout of mma_m16n8k16; an accumulator has 8 columns for
// each [4]. Products run on their own: neither their accumulator nor their A operand may be touched, and no operand in
// shared memory be written, before a wait for their group.
//
// Operands in shared memory are given by the 64-bit matrix descriptors of the PTX ISA. The host has versions of these
// functions that decode them (tests/host_cuda/include/common/hopper.cuh).
#pragma once

#include "common/ptx.cuh"

namespace q2export
{

// Orders what this thread has written to shared memory, or knows to be written, before the reads of later products.
__device__ inline void wgmma_fence_shared()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Orders the accesses to registers before the products that follow.
__device__ inline void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Closes the group of the products since the last one.
__device__ inline void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most kPending of the latest groups are unfinished.
template <int kPending>
__device__ inline void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving accesses to the registers of a product across this place.
template <int kColumns>
__device__ inline void wgmma_keep(float (&registers)[kColumns][4])
{
#pragma unroll
    for (int n = 0; n < kColumns; ++n)
    {
#pragma unroll
        for (int i = 0; i < 4; ++i)
        {
            asm volatile("" : "+f"(registers[n][i])::"memory");
        }
    }
}

template <int kSteps>
__device__ inline void wgmma_keep(uint32_t (&registers)[kSteps][4])
{
#pragma unroll
    for (int n = 0; n < kSteps; ++n)
    {
#pragma unroll
        for (int i = 0; i < 4; ++i)
        {
            asm volatile("" : "+r"(registers[n][i])::"memory");
        }
    }
}

#define Q2EXPORT_COLUMN(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define Q2EXPORT_COLUMNS_64                                                                                            \
    Q2EXPORT_COLUMN(0), Q2EXPORT_COLUMN(1), Q2EXPORT_COLUMN(2), Q2EXPORT_COLUMN(3),                                    \
    Q2EXPORT_COLUMN(4), Q2EXPORT_COLUMN(5), Q2EXPORT_COLUMN(6), Q2EXPORT_COLUMN(7)
#define Q2EXPORT_COLUMNS_128                                                                                           \
    Q2EXPORT_COLUMN(0), Q2EXPORT_COLUMN(1), Q2EXPORT_COLUMN(2), Q2EXPORT_COLUMN(3),                                    \
    Q2EXPORT_COLUMN(4), Q2EXPORT_COLUMN(5), Q2EXPORT_COLUMN(6), Q2EXPORT_COLUMN(7),                                    \
    Q2EXPORT_COLUMN(8), Q2EXPORT_COLUMN(9), Q2EXPORT_COLUMN(10), Q2EXPORT_COLUMN(11),                                  \
    Q2EXPORT_COLUMN(12), Q2EXPORT_COLUMN(13), Q2EXPORT_COLUMN(14), Q2EXPORT_COLUMN(15)
#define Q2EXPORT_NUMBERS_64                                                                                            \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "                            \
    "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define Q2EXPORT_NUMBERS_128                                                                                           \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "                            \
    "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "                            \
    "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "                            \
    "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// d += a b, or d = a b unless `accumulate`, for a 64 x 16 and b 16 x 128, both in shared memory with the 16 as the
// dimension that is contiguous.
template <typename Element>
__device__ inline void wgmma_m64n128k16(float (&d)[16][4], uint64_t a, uint64_t b, bool accumulate);

// The same for the first 64 columns of d, and as many of b.
template <typename Element>
__device__ inline void wgmma_m64n64k16(float (&d)[16][4], uint64_t a, uint64_t b, bool accumulate);

// d += a b, for a 64 x 16 in registers and b, as wide as d, in shared memory with the columns as the dimension that is
// contiguous.
template <typename Element>
__device__ inline void wgmma_m64k16(float (&d)[8][4], uint32_t const (&a)[4], uint64_t b);

template <typename Element>
__device__ inline void wgmma_m64k16(float (&d)[16][4], uint32_t const (&a)[4], uint64_t b);

template <>
__device__ inline void wgmma_m64n128k16<__half>(float (&d)[16][4], uint64_t a, uint64_t b, bool accumulate)
{
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %66, 0; "
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" Q2EXPORT_NUMBERS_128 "}, %64, %65, p, 1, 1, 0, 0;}"
        : Q2EXPORT_COLUMNS_128
        : "l"(a), "l"(b), "r"(accumulate ? 1 : 0));
}

template <>
__device__ inline void wgmma_m64n64k16<__half>(float (&d)[16][4], uint64_t a, uint64_t b, bool accumulate)
{
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %34, 0; "
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" Q2EXPORT_NUMBERS_64 "}, %32, %33, p, 1, 1, 0, 0;}"
        : Q2EXPORT_COLUMNS_64
        : "l"(a), "l"(b), "r"(accumulate ? 1 : 0));
}

template <>
__device__ inline void wgmma_m64k16<__half>(float (&d)[8][4], uint32_t const (&a)[4], uint64_t b)
{
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" Q2EXPORT_NUMBERS_64
        "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
        : Q2EXPORT_COLUMNS_64
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

template <>
__device__ inline void wgmma_m64k16<__half>(float (&d)[16][4], uint32_t const (&a)[4], uint64_t b)
{
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" Q2EXPORT_NUMBERS_128
        "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
        : Q2EXPORT_COLUMNS_128
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

template <>
__device__ inline void wgmma_m64n128k16<__nv_bfloat16>(float (&d)[16][4], uint64_t a, uint64_t b, bool accumulate)
{
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %66, 0; "
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" Q2EXPORT_NUMBERS_128 "}, %64, %65, p, 1, 1, 0, 0;}"
        : Q2EXPORT_COLUMNS_128
        : "l"(a), "l"(b), "r"(accumulate ? 1 : 0));
}

template <>
__device__ inline void wgmma_m64n64k16<__nv_bfloat16>(float (&d)[16][4], uint64_t a, uint64_t b, bool accumulate)
{
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %34, 0; "
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" Q2EXPORT_NUMBERS_64 "}, %32, %33, p, 1, 1, 0, 0;}"
        : Q2EXPORT_COLUMNS_64
        : "l"(a), "l"(b), "r"(accumulate ? 1 : 0));
}

template <>
__device__ inline void wgmma_m64k16<__nv_bfloat16>(float (&d)[8][4], uint32_t const (&a)[4], uint64_t b)
{
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" Q2EXPORT_NUMBERS_64
        "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
        : Q2EXPORT_COLUMNS_64
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

template <>
__device__ inline void wgmma_m64k16<__nv_bfloat16>(float (&d)[16][4], uint32_t const (&a)[4], uint64_t b)
{
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" Q2EXPORT_NUMBERS_128
        "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
        : Q2EXPORT_COLUMNS_128
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef Q2EXPORT_COLUMN
#undef Q2EXPORT_COLUMNS_64
#undef Q2EXPORT_COLUMNS_128
#undef Q2EXPORT_NUMBERS_64
#undef Q2EXPORT_NUMBERS_128

} // namespace q2export
