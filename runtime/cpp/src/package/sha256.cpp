#include "sha256.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define Q2EXPORT_SHA_NI 1
#endif

namespace q2export::runtime
{
namespace
{

// The first 32 bits of the fractional parts of the cube roots of the first 64 primes.
alignas(16) constexpr uint32_t kRound[64] = {0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
    0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7,
    0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
    0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c,
    0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t rotated(uint32_t value, int bits)
{
    return (value >> bits) | (value << (32 - bits));
}

void compress_portable(uint32_t* state, unsigned char const* data, size_t blocks)
{
    for (; blocks > 0; --blocks, data += 64)
    {
        uint32_t w[64];
        for (int i = 0; i < 16; ++i)
        {
            w[i] = uint32_t{data[4 * i]} << 24 | uint32_t{data[4 * i + 1]} << 16 | uint32_t{data[4 * i + 2]} << 8
                | uint32_t{data[4 * i + 3]};
        }
        for (int i = 16; i < 64; ++i)
        {
            uint32_t const low = rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ (w[i - 15] >> 3);
            uint32_t const high = rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ (w[i - 2] >> 10);
            w[i] = w[i - 16] + low + w[i - 7] + high;
        }
        uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
        uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
        for (int i = 0; i < 64; ++i)
        {
            uint32_t const sum1 = rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25);
            uint32_t const first = h + sum1 + ((e & f) ^ (~e & g)) + kRound[i] + w[i];
            uint32_t const sum0 = rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22);
            uint32_t const second = sum0 + ((a & b) ^ (a & c) ^ (b & c));
            h = g, g = f, f = e, e = d + first;
            d = c, c = b, b = a, a = first + second;
        }
        state[0] += a, state[1] += b, state[2] += c, state[3] += d;
        state[4] += e, state[5] += f, state[6] += g, state[7] += h;
    }
}

#if defined(Q2EXPORT_SHA_NI)

// The same with the processor's instructions (Intel SDM, SHA256RNDS2), which work on the words ABEF and CDGH.
__attribute__((target("sha,sse4.1,ssse3"))) void compress_sha_ni(
    uint32_t* state, unsigned char const* data, size_t blocks)
{
    __m128i const swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i const dcba = _mm_loadu_si128(reinterpret_cast<__m128i const*>(state));
    __m128i const hgfe = _mm_loadu_si128(reinterpret_cast<__m128i const*>(state + 4));
    __m128i const cdab = _mm_shuffle_epi32(dcba, 0xb1);
    __m128i const efgh = _mm_shuffle_epi32(hgfe, 0x1b);
    __m128i abef = _mm_alignr_epi8(cdab, efgh, 8);
    __m128i cdgh = _mm_blend_epi16(efgh, cdab, 0xf0);
    for (; blocks > 0; --blocks, data += 64)
    {
        __m128i const abef_before = abef;
        __m128i const cdgh_before = cdgh;
        __m128i w[4]; // the last 16 words of the message schedule
        for (int i = 0; i < 16; ++i)
        {
            if (i < 4)
            {
                w[i] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<__m128i const*>(data + 16 * i)), swap);
            }
            else
            {
                __m128i const low = _mm_sha256msg1_epu32(w[i & 3], w[(i + 1) & 3]);
                __m128i const middle = _mm_alignr_epi8(w[(i + 3) & 3], w[(i + 2) & 3], 4);
                w[i & 3] = _mm_sha256msg2_epu32(_mm_add_epi32(low, middle), w[(i + 3) & 3]);
            }
            __m128i const keys = _mm_load_si128(reinterpret_cast<__m128i const*>(kRound + 4 * i));
            __m128i const words = _mm_add_epi32(w[i & 3], keys);
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, words);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(words, 0x0e));
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    __m128i const feba = _mm_shuffle_epi32(abef, 0x1b);
    __m128i const dchg = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(state), _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

bool has_sha_ni()
{
    unsigned int a = 0, b = 0, c = 0, d = 0;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
    constexpr unsigned int kShaBit = 1u << 29; // leaf 7, EBX
    return (b & kShaBit) != 0 && __builtin_cpu_supports("sse4.1");
}

#endif

void compress(uint32_t* state, unsigned char const* data, size_t blocks)
{
#if defined(Q2EXPORT_SHA_NI)
    static bool const fast = has_sha_ni();
    if (fast)
    {
        compress_sha_ni(state, data, blocks);
        return;
    }
#endif
    compress_portable(state, data, blocks);
}

} // namespace

void Sha256::update(void const* data, size_t size)
{
    auto const* bytes = static_cast<unsigned char const*>(data);
    size_t const held = bytes_ % block_.size();
    bytes_ += size;
    if (held > 0)
    {
        size_t const taken = std::min(size, block_.size() - held);
        std::memcpy(block_.data() + held, bytes, taken);
        bytes += taken;
        size -= taken;
        if (held + taken < block_.size())
        {
            return;
        }
        compress(state_.data(), block_.data(), 1);
    }
    compress(state_.data(), bytes, size / block_.size());
    size_t const rest = size % block_.size();
    if (rest > 0)
    {
        std::memcpy(block_.data(), bytes + (size - rest), rest);
    }
}

std::string Sha256::hex()
{
    constexpr char kDigits[] = "0123456789abcdef";
    uint64_t const bits = bytes_ * 8;
    unsigned char const end = 0x80;
    unsigned char const zero = 0;
    update(&end, 1);
    while (bytes_ % block_.size() != block_.size() - 8)
    {
        update(&zero, 1);
    }
    unsigned char length[8];
    for (int i = 0; i < 8; ++i)
    {
        length[i] = static_cast<unsigned char>(bits >> (56 - 8 * i));
    }
    update(length, sizeof(length));
    std::string result;
    for (uint32_t const word : state_)
    {
        for (int shift = 28; shift >= 0; shift -= 4)
        {
            result += kDigits[(word >> shift) & 15];
        }
    }
    return result;
}

} // namespace q2export::runtime
