// Square blocks of floats, transposed with plain loops.
#pragma once

#include <algorithm>

#include "simd/portable.h"

namespace q2export::cpu
{
namespace
{

inline void transpose(Simd::Vector (&rows)[Simd::kWidth])
{
    Simd::Vector columns[Simd::kWidth];
    for (int row = 0; row < Simd::kWidth; ++row)
    {
        for (int column = 0; column < Simd::kWidth; ++column)
        {
            columns[column].lanes[row] = rows[row].lanes[column];
        }
    }
    std::copy(columns, columns + Simd::kWidth, rows);
}

} // namespace
} // namespace q2export::cpu
