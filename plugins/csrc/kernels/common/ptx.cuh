// The machine instructions the fast kernels are made of, one function each; PTX ISA 8.0, sm_80 and later.
//
// Everything a kernel cannot say in C++ is here and nowhere else, so that the tests can put host versions in its
// place (tests/host_cuda/include/common/ptx.cuh) and run the same kernels on a CPU. Section numbers are those of
// the PTX ISA, "Warp Level Matrix Instructions" and "Data Movement and Conversion Instructions".
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace q2export
{

// The dynamic shared memory of the block, aligned to 1024 bytes.
__device__ inline unsigned char* dynamic_shared()
{
    extern __shared__ __align__(1024) unsigned char q2export_dynamic_shared[];
    return q2export_dynamic_shared;
}

__device__ inline uint32_t shared_address(void const* pointer)
{
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Starts copying 16 bytes from global to shared memory, past L1; zeros are written where `valid` is false, and
// `global` is not read then. Both addresses are multiples of 16. Visible to this thread after a wait for its group, to
// others after a barrier as well.
__device__ inline void copy_async_16(void* shared, void const* global, bool valid = true)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
        "r"(valid ? 16 : 0)
        : "memory");
}

// The same for what is read once and in order, row after row of at least 256 bytes: L2 fetches 256 bytes at a time.
__device__ inline void copy_async_16_streamed(void* shared, void const* global, bool valid = true)
{
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
        "r"(valid ? 16 : 0)
        : "memory");
}

// Four or eight bytes, through L1: what lies next to them is read soon.
template <int kBytes>
__device__ inline void copy_async_small(void* shared, void const* global)
{
    static_assert(kBytes == 4 || kBytes == 8);
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(shared)), "l"(global), "n"(kBytes)
        : "memory");
}

// Closes the group of the copies this thread has started since the last one.
__device__ inline void copy_async_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most kPending of this thread's latest groups are unfinished.
template <int kPending>
__device__ inline void copy_async_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Loads four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8, 16 bytes, aligned.
// Register m of lane i holds elements 2 * (i % 4) and the next of row i / 4 of matrix m.
__device__ inline void load_matrix_x4(uint32_t (&registers)[4], void const* row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same, each matrix transposed: register m of lane i holds elements i / 4 of rows 2 * (i % 4) and the next.
__device__ inline void load_matrix_x4_transposed(uint32_t (&registers)[4], void const* row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// A lane's part of an operand that its warp loads without ldmatrix. As there, rows may be loaded that nobody has written,
// where nothing is made of them.
template <typename Value>
__device__ inline Value load_operand(void const* shared)
{
    return *static_cast<Value const*>(shared);
}

// Two matrices; the addresses of lanes 0 .. 15 count, those of the others must be valid too.
__device__ inline void load_matrix_x2(uint32_t (&registers)[2], void const* row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(registers[0]), "=r"(registers[1])
                 : "r"(shared_address(row))
                 : "memory");
}

// accumulator += a b, for a 16x16, b 16x8 and accumulator 16x8. With group = lane / 4 and pair = 2 * (lane % 4), each
// register holding an element and the next one in its low and high half:
//   a[0] row group,     columns pair ..        a[1] row group + 8, columns pair ..
//   a[2] row group,     columns pair + 8 ..    a[3] row group + 8, columns pair + 8 ..
//   b[0] rows pair .., column group            b[1] rows pair + 8 .., column group
//   accumulator[0], [1]: row group, columns pair and pair + 1; [2], [3]: row group + 8
template <typename Element>
__device__ inline void mma_m16n8k16(float (&accumulator)[4], uint32_t const (&a)[4], uint32_t const (&b)[2]);

template <>
__device__ inline void mma_m16n8k16<__half>(float (&accumulator)[4], uint32_t const (&a)[4], uint32_t const (&b)[2])
{
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(accumulator[0]), "+f"(accumulator[1]), "+f"(accumulator[2]), "+f"(accumulator[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ inline void mma_m16n8k16<__nv_bfloat16>(
    float (&accumulator)[4], uint32_t const (&a)[4], uint32_t const (&b)[2])
{
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(accumulator[0]), "+f"(accumulator[1]), "+f"(accumulator[2]), "+f"(accumulator[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// sums = a b, as above.
template <typename Element>
__device__ inline void mma_m16n8k16_zero(float (&sums)[4], uint32_t const (&a)[4], uint32_t const (&b)[2]);

template <>
__device__ inline void mma_m16n8k16_zero<__half>(float (&sums)[4], uint32_t const (&a)[4], uint32_t const (&b)[2])
{
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %10, %10, %10};"
        : "=f"(sums[0]), "=f"(sums[1]), "=f"(sums[2]), "=f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(0.0F));
}

template <>
__device__ inline void mma_m16n8k16_zero<__nv_bfloat16>(
    float (&sums)[4], uint32_t const (&a)[4], uint32_t const (&b)[2])
{
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %10, %10, %10};"
        : "=f"(sums[0]), "=f"(sums[1]), "=f"(sums[2]), "=f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(0.0F));
}

// Four of the bytes of `low` (numbers 0 .. 3) and `high` (4 .. 7): digit i of the hexadecimal selector is the number of
// byte i of the result.
__device__ inline uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector)
{
    uint32_t result;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "r"(selector));
    return result;
}

// a b + c for both elements of each register, rounded once.
template <typename Element>
__device__ inline uint32_t multiply_add2(uint32_t a, uint32_t b, uint32_t c);

template <>
__device__ inline uint32_t multiply_add2<__half>(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t result;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
    return result;
}

template <>
__device__ inline uint32_t multiply_add2<__nv_bfloat16>(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t result;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
    return result;
}

// Transposes an 8x8 matrix of 16-bit elements: lane i gives elements 2 * (i % 4) and the next of row i / 4, and gets
// those of column i / 4.
__device__ inline uint32_t transpose_matrix(uint32_t pair)
{
    uint32_t transposed;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(pair));
    return transposed;
}

// Two floats rounded to Element, `low` in the low half.
template <typename Element>
__device__ inline uint32_t pack2(float low, float high);

template <>
__device__ inline uint32_t pack2<__half>(float low, float high)
{
    uint32_t packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

template <>
__device__ inline uint32_t pack2<__nv_bfloat16>(float low, float high)
{
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

// The two elements of a register as floats, the low half as x.
template <typename Element>
__device__ inline float2 unpack2(uint32_t packed);

template <>
__device__ inline float2 unpack2<__half>(uint32_t packed)
{
    float2 values;
    asm("{ .reg .f16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high; }"
        : "=f"(values.x), "=f"(values.y)
        : "r"(packed));
    return values;
}

template <>
__device__ inline float2 unpack2<__nv_bfloat16>(uint32_t packed)
{
    return make_float2(__uint_as_float(packed << 16), __uint_as_float(packed & 0xFFFF0000U));
}

// 2 ** x to about 2 units in the last place; 0 for -inf (denormal results become 0).
__device__ inline float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// `value`, which the compiler takes for a new one each time: what follows from it is computed again where it is used,
// instead of once before a loop, to stay in registers.
__device__ inline int recomputed(int value)
{
    asm volatile("" : "+r"(value));
    return value;
}

// Waits until the kernels before this one in the stream have ended and what they wrote is visible: see
// LaunchShape::overlaps_previous. Without that, they have.
__device__ inline void wait_for_previous_kernel()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the blocks of the next kernel start, if it is one that waits, once all blocks of this one have come here.
__device__ inline void allow_next_kernel()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// 16 bytes of global memory that are read once: past L1, through the read-only path.
__device__ inline uint4 load_once_16(void const* global)
{
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(global));
    return v;
}

} // namespace q2export
