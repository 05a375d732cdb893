// Vectors of 16 32-bit integers, or of 64 bytes, for the AVX-512 source alone: see simd/avx512.h.
#pragma once

#include "common/unrolled.h"
#include "simd/avx512.h"

namespace q2export::cpu
{
namespace
{

struct Integers
{
    using Vector = __m512i;
    static constexpr int kPanelRows = 6; // of activations: times two vectors of outputs; more of the 32 registers were no faster

    static Vector zero()
    {
        return _mm512_setzero_si512();
    }

    static Vector load(void const* source)
    {
        return _mm512_loadu_si512(source);
    }

    static void store(void* target, Vector const& value)
    {
        _mm512_storeu_si512(target, value);
    }

    // Four bytes, in every lane.
    static Vector broadcast(void const* source)
    {
        return _mm512_set1_epi32(read_unaligned<int32_t>(source));
    }

    static Vector from_floats(Simd::Vector value) // the bits
    {
        return _mm512_castps_si512(value);
    }

    static Simd::Vector to_floats(Vector value) // the numbers
    {
        return _mm512_cvtepi32_ps(value);
    }

    // The low and the high half of each byte.
    static Vector low_halves(Vector both)
    {
        return _mm512_and_si512(both, _mm512_set1_epi8(15));
    }

    static Vector high_halves(Vector both)
    {
        return _mm512_and_si512(_mm512_srli_epi16(both, 4), _mm512_set1_epi8(15));
    }

    // Adds, to each lane, the products of its four bytes: codes of kBits bits times signed values.
    template <int kBits>
    static Vector dot(Vector codes, Vector values, Vector sum)
    {
        // Of the intrinsic, gcc 12 copies every sum twice: a third of the speed.
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "vm"(values));
        return sum;
    }

    // Quads are four neighbouring lanes. Lane i of a result's quad is the sum of that quad of v[i].
    static Vector add_quads(Vector const (&v)[4])
    {
        Vector const ab = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
        Vector const cd = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
        return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    }

    // Adds neighbouring quads: a's sums, then b's.
    static Vector fold(Vector a, Vector b)
    {
        return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
    }

    static void transpose(Vector (&v)[Simd::kWidth])
    {
        Vector quads[Simd::kWidth]; // [4 * i + j]: lane j of each quad, of vectors 4 * i .. 4 * i + 3
        unrolled<4>([&](auto i) {
            Vector const* const four = v + 4 * i;
            Vector const low01 = _mm512_unpacklo_epi32(four[0], four[1]);
            Vector const low23 = _mm512_unpacklo_epi32(four[2], four[3]);
            Vector const high01 = _mm512_unpackhi_epi32(four[0], four[1]);
            Vector const high23 = _mm512_unpackhi_epi32(four[2], four[3]);
            quads[4 * i] = _mm512_unpacklo_epi64(low01, low23);
            quads[4 * i + 1] = _mm512_unpackhi_epi64(low01, low23);
            quads[4 * i + 2] = _mm512_unpacklo_epi64(high01, high23);
            quads[4 * i + 3] = _mm512_unpackhi_epi64(high01, high23);
        });
        unrolled<4>([&](auto j) {
            Vector const even_a = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0x88);
            Vector const even_b = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0x88);
            Vector const odd_a = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0xdd);
            Vector const odd_b = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0xdd);
            v[j] = _mm512_shuffle_i32x4(even_a, even_b, 0x88);
            v[4 + j] = _mm512_shuffle_i32x4(odd_a, odd_b, 0x88);
            v[8 + j] = _mm512_shuffle_i32x4(even_a, even_b, 0xdd);
            v[12 + j] = _mm512_shuffle_i32x4(odd_a, odd_b, 0xdd);
        });
    }

    // Four float16 numbers of each of four rows, `stride` bytes apart, widened, as quads: quad i has number i of every row.
    static void load_quads(Bytes rows, int64_t stride, Simd::Vector (&quads)[1])
    {
        __m128i const first = _mm_set_epi64x(read_unaligned<int64_t>(rows + stride), read_unaligned<int64_t>(rows));
        __m128i const last
            = _mm_set_epi64x(read_unaligned<int64_t>(rows + 3 * stride), read_unaligned<int64_t>(rows + 2 * stride));
        __m512i const order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        quads[0] = _mm512_permutexvar_ps(order, _mm512_cvtph_ps(_mm256_set_m128i(last, first)));
    }

    // Adds four quads: (first + third) + (second + fourth).
    static void sum_blocks(Simd::Vector const (&quads)[1], float (&sums)[4])
    {
        __m256 const two = _mm256_add_ps(_mm512_castps512_ps256(quads[0]), _mm512_extractf32x8_ps(quads[0], 1));
        _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps(two, 1)));
    }

    // As many codes of kBits bits as a vector of floats has lanes, as numbers.
    template <int kBits>
    static Simd::Vector codes_to_floats(Bytes source)
    {
        __m128i codes;
        if constexpr (kBits == 8)
        {
            codes = _mm_loadu_si128(reinterpret_cast<__m128i const*>(source));
        }
        else
        {
            __m128i const both = _mm_loadl_epi64(reinterpret_cast<__m128i const*>(source));
            __m128i const mask = _mm_set1_epi8(15);
            codes = _mm_unpacklo_epi8(_mm_and_si128(both, mask), _mm_and_si128(_mm_srli_epi16(both, 4), mask));
        }
        return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes));
    }

    // NaN where there is one among them: its bits are the largest.
    static float largest_magnitude(float const* source, int64_t count)
    {
        __m512i largest = _mm512_setzero_si512();
        for (int64_t i = 0; i < count; i += Simd::kWidth)
        {
            __m512i const bits = _mm512_castps_si512(_mm512_abs_ps(_mm512_loadu_ps(source + i)));
            largest = _mm512_max_epi32(largest, bits);
        }
        return float_from_bits(static_cast<uint32_t>(_mm512_reduce_max_epi32(largest)));
    }

    // Writes values to nearest, ties to even, within -127 .. 127; returns them.
    static Vector store_rounded(int8_t* target, Simd::Vector value)
    {
        __m512i const low = _mm512_max_epi32(_mm512_cvtps_epi32(value), _mm512_set1_epi32(-127));
        __m512i const limited = _mm512_min_epi32(low, _mm512_set1_epi32(127));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(target), _mm512_cvtepi32_epi8(limited));
        return limited;
    }

    static Vector add(Vector a, Vector b)
    {
        return _mm512_add_epi32(a, b);
    }

    static int32_t sum(Vector value)
    {
        return _mm512_reduce_add_epi32(value);
    }
};

} // namespace
} // namespace q2export::cpu
