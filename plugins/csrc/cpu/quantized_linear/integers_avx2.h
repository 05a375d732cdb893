// Vectors of 8 32-bit integers, or of 32 bytes, for the AVX2 source alone: see simd/avx2.h. What the functions do is
// said in integers_avx512.h.
#pragma once

#include "simd/avx2.h"

namespace q2export::cpu
{
namespace
{

struct Integers
{
    using Vector = __m256i;
    static constexpr int kPanelRows = 4; // times two vectors of outputs: 8 of the 16 registers

    static Vector zero()
    {
        return _mm256_setzero_si256();
    }

    static Vector load(void const* source)
    {
        return _mm256_loadu_si256(static_cast<__m256i const*>(source));
    }

    static void store(void* target, Vector const& value)
    {
        _mm256_storeu_si256(static_cast<__m256i*>(target), value);
    }

    static Vector broadcast(void const* source)
    {
        return _mm256_set1_epi32(read_unaligned<int32_t>(source));
    }

    static Vector from_floats(Simd::Vector value)
    {
        return _mm256_castps_si256(value);
    }

    static Simd::Vector to_floats(Vector value)
    {
        return _mm256_cvtepi32_ps(value);
    }

    static Vector low_halves(Vector both)
    {
        return _mm256_and_si256(both, _mm256_set1_epi8(15));
    }

    static Vector high_halves(Vector both)
    {
        return _mm256_and_si256(_mm256_srli_epi16(both, 4), _mm256_set1_epi8(15));
    }

    template <int kBits>
    static Vector dot(Vector codes, Vector values, Vector sum)
    {
        if constexpr (kBits == 4)
        {
            Vector const pairs = _mm256_maddubs_epi16(codes, values); // at most 2 * 15 * 127
            return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        }
        else
        {
            // In 16 bits first: the sum of two products of bytes would not fit.
            Vector const even = _mm256_madd_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(255)),
                _mm256_srai_epi16(_mm256_slli_epi16(values, 8), 8));
            Vector const odd = _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), _mm256_srai_epi16(values, 8));
            return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
        }
    }

    static Vector add_quads(Vector const (&v)[4])
    {
        Vector const ab = _mm256_add_epi32(_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[0], v[1]));
        Vector const cd = _mm256_add_epi32(_mm256_unpacklo_epi32(v[2], v[3]), _mm256_unpackhi_epi32(v[2], v[3]));
        return _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
    }

    static Vector fold(Vector a, Vector b)
    {
        return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
    }

    static void transpose(Vector (&v)[Simd::kWidth])
    {
        Vector quads[Simd::kWidth];
        for (int i = 0; i < Simd::kWidth; i += 4)
        {
            Vector const low01 = _mm256_unpacklo_epi32(v[i], v[i + 1]);
            Vector const low23 = _mm256_unpacklo_epi32(v[i + 2], v[i + 3]);
            Vector const high01 = _mm256_unpackhi_epi32(v[i], v[i + 1]);
            Vector const high23 = _mm256_unpackhi_epi32(v[i + 2], v[i + 3]);
            quads[i] = _mm256_unpacklo_epi64(low01, low23);
            quads[i + 1] = _mm256_unpackhi_epi64(low01, low23);
            quads[i + 2] = _mm256_unpacklo_epi64(high01, high23);
            quads[i + 3] = _mm256_unpackhi_epi64(high01, high23);
        }
        for (int j = 0; j < 4; ++j)
        {
            v[j] = _mm256_permute2x128_si256(quads[j], quads[4 + j], 0x20);
            v[4 + j] = _mm256_permute2x128_si256(quads[j], quads[4 + j], 0x31);
        }
    }

    static void load_quads(Bytes rows, int64_t stride, Simd::Vector (&quads)[2])
    {
        auto const two = [&](int64_t row) {
            return _mm256_cvtph_ps(_mm_set_epi64x(read_unaligned<int64_t>(rows + (row + 2) * stride),
                read_unaligned<int64_t>(rows + row * stride)));
        };
        __m256 const even = two(0);
        __m256 const odd = two(1);
        __m256d const first = _mm256_castps_pd(_mm256_unpacklo_ps(even, odd));
        __m256d const last = _mm256_castps_pd(_mm256_unpackhi_ps(even, odd));
        quads[0] = _mm256_castpd_ps(_mm256_permute4x64_pd(first, 0xd8));
        quads[1] = _mm256_castpd_ps(_mm256_permute4x64_pd(last, 0xd8));
    }

    static void sum_blocks(Simd::Vector const (&quads)[2], float (&sums)[4])
    {
        __m256 const two = _mm256_add_ps(quads[0], quads[1]);
        _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps(two, 1)));
    }

    template <int kBits>
    static Simd::Vector codes_to_floats(Bytes source)
    {
        __m128i codes;
        if constexpr (kBits == 8)
        {
            codes = _mm_loadl_epi64(reinterpret_cast<__m128i const*>(source));
        }
        else
        {
            __m128i const both = _mm_cvtsi32_si128(read_unaligned<int32_t>(source));
            __m128i const mask = _mm_set1_epi8(15);
            codes = _mm_unpacklo_epi8(_mm_and_si128(both, mask), _mm_and_si128(_mm_srli_epi16(both, 4), mask));
        }
        return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(codes));
    }

    static float largest_magnitude(float const* source, int64_t count)
    {
        __m256i const magnitude = _mm256_set1_epi32(0x7fffffff);
        __m256i largest = _mm256_setzero_si256();
        for (int64_t i = 0; i < count; i += Simd::kWidth)
        {
            largest = _mm256_max_epi32(largest, _mm256_and_si256(load(source + i), magnitude));
        }
        __m128i four = _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
        four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
        four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
        return float_from_bits(static_cast<uint32_t>(_mm_cvtsi128_si32(four)));
    }

    static Vector store_rounded(int8_t* target, Simd::Vector value)
    {
        __m256i const low = _mm256_max_epi32(_mm256_cvtps_epi32(value), _mm256_set1_epi32(-127));
        __m256i const limited = _mm256_min_epi32(low, _mm256_set1_epi32(127));
        __m128i const pairs
            = _mm_packs_epi32(_mm256_castsi256_si128(limited), _mm256_extracti128_si256(limited, 1));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(target), _mm_packs_epi16(pairs, pairs));
        return limited;
    }

    static Vector add(Vector a, Vector b)
    {
        return _mm256_add_epi32(a, b);
    }

    static int32_t sum(Vector value)
    {
        __m128i four = _mm_add_epi32(_mm256_castsi256_si128(value), _mm256_extracti128_si256(value, 1));
        four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
        return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
    }
};

} // namespace
} // namespace q2export::cpu
