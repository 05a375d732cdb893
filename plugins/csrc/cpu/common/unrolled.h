// Loops that are written out, whatever the compiler thinks of their length: their arrays of vectors become registers.
#pragma once

#include <type_traits>
#include <utility>

namespace q2export::cpu
{
namespace
{

template <typename Body, int... kIndices>
inline void unrolled(Body const& body, std::integer_sequence<int, kIndices...>)
{
    (body(std::integral_constant<int, kIndices>{}), ...);
}

// Calls body(i) for i < kCount; i is a constant.
template <int kCount, typename Body>
inline void unrolled(Body const& body)
{
    unrolled(body, std::make_integer_sequence<int, kCount>{});
}

} // namespace
} // namespace q2export::cpu
