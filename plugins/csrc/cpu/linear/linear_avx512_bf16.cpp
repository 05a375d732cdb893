// Linear layers whose input is rounded to bfloat16, over weights of bfloat16: two products per lane and instruction.
#include "simd/avx512.h"

#include "linear/linear_kernel.h"

namespace q2export::cpu
{
namespace
{

// Products are exact; vdpbf16ps takes subnormal inputs and sums for zero.
struct Pairs
{
    using Element = uint16_t; // the bits of a bfloat16
    using Operand = __m512i;  // 32 of them
    using InPanel = Pairs;
    static constexpr int kStep = 2 * Simd::kWidth;
    static constexpr int kBytes = 2;

    static Element const* input(Linear const& linear)
    {
        return linear.rounded;
    }

    static Operand load(Element const* source)
    {
        return _mm512_loadu_si512(source);
    }

    static Operand load_first(Element const* source, int count)
    {
        return _mm512_maskz_loadu_epi16(first(count), source);
    }

    static Operand weight(Bytes source)
    {
        return _mm512_loadu_si512(source);
    }

    static Operand weight_first(Bytes source, int count)
    {
        return _mm512_maskz_loadu_epi16(first(count), source);
    }

    static void store(Element* target, Operand value)
    {
        _mm512_storeu_si512(target, value);
    }

    static Simd::Vector add(Operand x, Operand w, Simd::Vector sum)
    {
        return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
    }

private:
    static __mmask32 first(int count)
    {
        return (__mmask32{1} << count) - 1;
    }
};

// To nearest, ties to even.
void round_row(float const* source, int64_t count, uint16_t* target)
{
    for (int64_t i = 0; i < count; i += Simd::kWidth)
    {
        int const lanes = static_cast<int>(std::min<int64_t>(Simd::kWidth, count - i));
        auto const mask = static_cast<__mmask16>((1u << lanes) - 1u);
        auto const narrow = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, source + i)));
        _mm256_mask_storeu_epi16(target + i, mask, narrow);
    }
}

} // namespace

RoundedLinearKernels const kRoundedLinearAvx512{{kDirectRows, direct<Pairs>, packed<Pairs>}, round_row};

} // namespace q2export::cpu
