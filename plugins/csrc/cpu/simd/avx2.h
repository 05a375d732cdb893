// Vectors of 8 floats. For sources compiled with the AVX2 flags alone: everything is in an unnamed namespace, so that
// the linker never takes this code for another source's.
#pragma once

#include <immintrin.h>

#include "common/element.h"

namespace q2export::cpu
{
namespace
{

struct Simd
{
    using Vector = __m256;
    static constexpr int kWidth = 8;
    static constexpr int kTileRows = 3; // of a matmul's register tile, by four columns

    static Vector zero()
    {
        return _mm256_setzero_ps();
    }

    static Vector broadcast(float value)
    {
        return _mm256_set1_ps(value);
    }

    static Vector load(float const* source)
    {
        return _mm256_loadu_ps(source);
    }

    static Vector load_first(float const* source, int count)
    {
        return _mm256_maskload_ps(source, first(count));
    }

    static Vector widen(Float32, Bytes source)
    {
        return _mm256_loadu_ps(reinterpret_cast<float const*>(source));
    }

    static Vector widen(BFloat16, Bytes source)
    {
        __m128i const halves = _mm_loadu_si128(reinterpret_cast<__m128i const*>(source));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
    }

    static Vector widen(Float16, Bytes source)
    {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<__m128i const*>(source)));
    }

    template <typename Element>
    static Vector widen_first(Element element, Bytes source, int count)
    {
        alignas(32) unsigned char padded[kWidth * Element::kBytes] = {};
        std::memcpy(padded, source, static_cast<size_t>(count) * Element::kBytes);
        return widen(element, padded);
    }

    static void store(float* target, Vector value)
    {
        _mm256_storeu_ps(target, value);
    }

    static void store_first(float* target, Vector value, int count)
    {
        _mm256_maskstore_ps(target, first(count), value);
    }

    static Vector fma(Vector a, Vector b, Vector sum)
    {
        return _mm256_fmadd_ps(a, b, sum);
    }

    static Vector multiply(Vector a, Vector b)
    {
        return _mm256_mul_ps(a, b);
    }

    static Vector subtract_product(Vector a, Vector b, Vector from)
    {
        return _mm256_fnmadd_ps(a, b, from);
    }

    static Vector add(Vector a, Vector b)
    {
        return _mm256_add_ps(a, b);
    }

    static Vector subtract(Vector a, Vector b)
    {
        return _mm256_sub_ps(a, b);
    }

    static Vector maximum(Vector a, Vector b)
    {
        return _mm256_max_ps(a, b);
    }

    static Vector divide(Vector a, Vector b)
    {
        return _mm256_div_ps(a, b);
    }

    static Vector round(Vector value)
    {
        return _mm256_round_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }

    // value * 2^power, of a whole power that a float's exponent holds.
    static Vector times_power_of_two(Vector value, Vector power)
    {
        __m256i const exponent = _mm256_add_epi32(_mm256_cvtps_epi32(power), _mm256_set1_epi32(127));
        return _mm256_mul_ps(value, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
    }

    // value where x >= limit, else zero.
    static Vector where_at_least(Vector x, Vector limit, Vector value)
    {
        return _mm256_and_ps(_mm256_cmp_ps(x, limit, _CMP_GE_OQ), value);
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
        __m256 const ab = _mm256_add_ps(_mm256_unpacklo_ps(v[0], v[1]), _mm256_unpackhi_ps(v[0], v[1]));
        __m256 const cd = _mm256_add_ps(_mm256_unpacklo_ps(v[2], v[3]), _mm256_unpackhi_ps(v[2], v[3]));
        __m256d const ab2 = _mm256_castps_pd(ab);
        __m256d const cd2 = _mm256_castps_pd(cd);
        __m256 const abcd = _mm256_add_ps(
            _mm256_castpd_ps(_mm256_unpacklo_pd(ab2, cd2)), _mm256_castpd_ps(_mm256_unpackhi_pd(ab2, cd2)));
        return _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
    }

    static void sum4(Vector const (&v)[4], float (&sums)[4])
    {
        store4(sums, sum4(v));
    }

private:
    static __m256i first(int count)
    {
        __m256i const lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lanes);
    }
};

} // namespace
} // namespace q2export::cpu
