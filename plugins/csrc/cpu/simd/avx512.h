// Vectors of 16 floats. For sources compiled with the AVX-512 flags alone: everything is in an unnamed namespace, so
// that the linker never takes this code for another source's.
#pragma once

#include <immintrin.h>

#include "common/element.h"

namespace q2export::cpu
{
namespace
{

struct Simd
{
    using Vector = __m512;
    static constexpr int kWidth = 16;
    static constexpr int kTileRows = 6; // of a matmul's register tile, by four columns

    static Vector zero()
    {
        return _mm512_setzero_ps();
    }

    static Vector broadcast(float value)
    {
        return _mm512_set1_ps(value);
    }

    static Vector load(float const* source)
    {
        return _mm512_loadu_ps(source);
    }

    static Vector load_first(float const* source, int count)
    {
        return _mm512_maskz_loadu_ps(first(count), source);
    }

    static Vector widen(Float32, Bytes source)
    {
        return _mm512_loadu_ps(source);
    }

    static Vector widen(BFloat16, Bytes source)
    {
        return from_bfloat16(_mm256_loadu_si256(reinterpret_cast<__m256i const*>(source)));
    }

    static Vector widen(Float16, Bytes source)
    {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<__m256i const*>(source)));
    }

    static Vector widen_first(Float32, Bytes source, int count)
    {
        return _mm512_maskz_loadu_ps(first(count), source);
    }

    static Vector widen_first(BFloat16, Bytes source, int count)
    {
        return from_bfloat16(_mm256_maskz_loadu_epi16(first(count), source));
    }

    static Vector widen_first(Float16, Bytes source, int count)
    {
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count), source));
    }

    static void store(float* target, Vector value)
    {
        _mm512_storeu_ps(target, value);
    }

    static void store_first(float* target, Vector value, int count)
    {
        _mm512_mask_storeu_ps(target, first(count), value);
    }

    static Vector fma(Vector a, Vector b, Vector sum)
    {
        return _mm512_fmadd_ps(a, b, sum);
    }

    static Vector multiply(Vector a, Vector b)
    {
        return _mm512_mul_ps(a, b);
    }

    static Vector subtract_product(Vector a, Vector b, Vector from)
    {
        return _mm512_fnmadd_ps(a, b, from);
    }

    static Vector add(Vector a, Vector b)
    {
        return _mm512_add_ps(a, b);
    }

    static Vector subtract(Vector a, Vector b)
    {
        return _mm512_sub_ps(a, b);
    }

    static Vector maximum(Vector a, Vector b)
    {
        return _mm512_max_ps(a, b);
    }

    static Vector divide(Vector a, Vector b)
    {
        return _mm512_div_ps(a, b);
    }

    static Vector round(Vector value)
    {
        return _mm512_roundscale_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }

    // value * 2^power, of a whole power.
    static Vector times_power_of_two(Vector value, Vector power)
    {
        return _mm512_scalef_ps(value, power);
    }

    // value where x >= limit, else zero.
    static Vector where_at_least(Vector x, Vector limit, Vector value)
    {
        return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_GE_OQ), value);
    }

    // Four floats.
    using Four = __m128;

    static Four load4(float const* source)
    {
        return _mm_loadu_ps(source);
    }

    static void store4(float* target, Four value)
    {
        _mm_storeu_ps(target, value);
    }

    static Four add4(Four a, Four b)
    {
        return _mm_add_ps(a, b);
    }

    // The sums of four vectors' elements, each in the same order.
    static Four sum4(Vector const (&v)[4])
    {
        __m512 const ab = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
        __m512 const cd = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
        __m512d const ab2 = _mm512_castps_pd(ab);
        __m512d const cd2 = _mm512_castps_pd(cd);
        __m512 const abcd = _mm512_add_ps(
            _mm512_castpd_ps(_mm512_unpacklo_pd(ab2, cd2)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab2, cd2)));
        __m256 const half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
        return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    }

    static void sum4(Vector const (&v)[4], float (&sums)[4])
    {
        store4(sums, sum4(v));
    }

private:
    static __mmask16 first(int count)
    {
        return static_cast<__mmask16>((1u << count) - 1u);
    }

    static Vector from_bfloat16(__m256i value)
    {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(value), 16));
    }
};

} // namespace
} // namespace q2export::cpu
