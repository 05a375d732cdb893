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

    // The sums of four vectors' elements, each in the same order.
    static void sum4(Vector const (&v)[4], float (&sums)[4])
    {
        __m512 const ab = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
        __m512 const cd = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
        __m512d const ab2 = _mm512_castps_pd(ab);
        __m512d const cd2 = _mm512_castps_pd(cd);
        __m512 const abcd = _mm512_add_ps(
            _mm512_castpd_ps(_mm512_unpacklo_pd(ab2, cd2)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab2, cd2)));
        __m256 const half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
        _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
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
