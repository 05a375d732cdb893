// 16 x 16 floats, transposed in registers.
#pragma once

#include "common/unrolled.h"
#include "simd/avx512.h"

namespace q2export::cpu
{
namespace
{

inline void transpose(__m512 (&rows)[16])
{
    __m512 fours[16]; // of rows 4 i .. 4 i + 3: columns c, c + 4, c + 8, c + 12 in [4 i + c]
    unrolled<4>([&](auto i) {
        __m512 const* const r = rows + 4 * i;
        __m512d const low01 = _mm512_castps_pd(_mm512_unpacklo_ps(r[0], r[1]));
        __m512d const high01 = _mm512_castps_pd(_mm512_unpackhi_ps(r[0], r[1]));
        __m512d const low23 = _mm512_castps_pd(_mm512_unpacklo_ps(r[2], r[3]));
        __m512d const high23 = _mm512_castps_pd(_mm512_unpackhi_ps(r[2], r[3]));
        fours[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23));
        fours[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23));
        fours[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23));
        fours[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23));
    });
    unrolled<4>([&](auto c) {
        __m512 const even01 = _mm512_shuffle_f32x4(fours[c], fours[c + 4], 0x88); // columns c and c + 8
        __m512 const odd01 = _mm512_shuffle_f32x4(fours[c], fours[c + 4], 0xdd);
        __m512 const even23 = _mm512_shuffle_f32x4(fours[c + 8], fours[c + 12], 0x88);
        __m512 const odd23 = _mm512_shuffle_f32x4(fours[c + 8], fours[c + 12], 0xdd);
        rows[c] = _mm512_shuffle_f32x4(even01, even23, 0x88);
        rows[c + 8] = _mm512_shuffle_f32x4(even01, even23, 0xdd);
        rows[c + 4] = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
        rows[c + 12] = _mm512_shuffle_f32x4(odd01, odd23, 0xdd);
    });
}

} // namespace
} // namespace q2export::cpu
