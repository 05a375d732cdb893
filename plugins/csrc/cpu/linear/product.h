// What a matmul multiplies: elements of the input with elements of weights, a vector of each at a time.
#pragma once

#include "linear/linear.h"

namespace q2export::cpu
{
namespace
{

// float32 input times weights that are widened as they are read.
template <typename Weight>
struct Widened
{
    using Element = float; // of the input, and of weights in a panel
    using Operand = Simd::Vector;
    using InPanel = Widened<Float32>;
    static constexpr int kStep = Simd::kWidth; // elements of a vector
    static constexpr int kBytes = Weight::kBytes;

    static Element const* input(Linear const& linear)
    {
        return linear.input;
    }

    static Operand load(Element const* source)
    {
        return Simd::load(source);
    }

    static Operand load_first(Element const* source, int count)
    {
        return Simd::load_first(source, count);
    }

    static Operand weight(Bytes source)
    {
        return Simd::widen(Weight{}, source);
    }

    static Operand weight_first(Bytes source, int count)
    {
        return Simd::widen_first(Weight{}, source, count);
    }

    static void store(Element* target, Operand const& value)
    {
        Simd::store(target, value);
    }

    static Simd::Vector add(Operand const& x, Operand const& w, Simd::Vector const& sum)
    {
        return Simd::fma(x, w, sum);
    }
};

} // namespace
} // namespace q2export::cpu
