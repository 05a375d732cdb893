// 8 x 8 floats, transposed in registers.
#pragma once

#include "common/unrolled.h"
#include "simd/avx2.h"

namespace q2export::cpu
{
namespace
{

inline void transpose(__m256 (&rows)[8])
{
    __m256 pairs[8];
    unrolled<4>([&](auto i) {
        pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    });
    __m256 fours[8]; // of rows 0-3 or 4-7: columns i and i + 4
    unrolled<2>([&](auto half) {
        __m256 const* const p = pairs + 4 * half;
        fours[4 * half] = _mm256_shuffle_ps(p[0], p[2], 0x44);
        fours[4 * half + 1] = _mm256_shuffle_ps(p[0], p[2], 0xee);
        fours[4 * half + 2] = _mm256_shuffle_ps(p[1], p[3], 0x44);
        fours[4 * half + 3] = _mm256_shuffle_ps(p[1], p[3], 0xee);
    });
    unrolled<4>([&](auto i) {
        rows[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
        rows[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
    });
}

} // namespace
} // namespace q2export::cpu
