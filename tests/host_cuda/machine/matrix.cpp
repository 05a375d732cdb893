#include "machine/matrix.h"

#include <cstring>

namespace host_cuda
{
namespace
{

constexpr unsigned kM = 16;
constexpr unsigned kN = 8;
constexpr unsigned kK = 16;
constexpr unsigned kRows = 8; // of a matrix that ldmatrix loads; as many columns

struct Load
{
    uint32_t* registers;
    unsigned count;
    void const* row;
    bool transposed;
};

struct Multiply
{
    float* accumulator;
    uint32_t const* a;
    uint32_t const* b;
    Widen widen;
};

// The two elements of a register, widened, to to[0] and to[stride].
void spread(Widen widen, uint32_t packed, float* to, size_t stride)
{
    uint16_t const elements[2] = {static_cast<uint16_t>(packed), static_cast<uint16_t>(packed >> 16)};
    float values[2];
    widen(elements, values, 2);
    to[0] = values[0];
    to[stride] = values[1];
}

void load(Arguments const& arguments, unsigned)
{
    Load const& first = *static_cast<Load const*>(arguments[0]);
    for (unsigned m = 0; m < first.count; ++m)
    {
        uint16_t matrix[kRows][kRows];
        for (unsigned row = 0; row < kRows; ++row)
        {
            std::memcpy(matrix[row], static_cast<Load const*>(arguments[m * kRows + row])->row, sizeof matrix[row]);
        }
        for (unsigned lane = 0; lane < kWarpLanes; ++lane)
        {
            unsigned const group = lane / 4;
            unsigned const pair = lane % 4 * 2;
            uint32_t const low = first.transposed ? matrix[pair][group] : matrix[group][pair];
            uint32_t const high = first.transposed ? matrix[pair + 1][group] : matrix[group][pair + 1];
            static_cast<Load const*>(arguments[lane])->registers[m] = high << 16 | low;
        }
    }
}

// Each argument is a lane's register: its pair of the matrix, then of the transposed one.
void transpose(Arguments const& arguments, unsigned)
{
    uint16_t matrix[kRows][kRows];
    for (unsigned lane = 0; lane < kWarpLanes; ++lane)
    {
        std::memcpy(&matrix[lane / 4][lane % 4 * 2], arguments[lane], sizeof(uint32_t));
    }
    for (unsigned lane = 0; lane < kWarpLanes; ++lane)
    {
        uint16_t const pair[2] = {matrix[lane % 4 * 2][lane / 4], matrix[lane % 4 * 2 + 1][lane / 4]};
        std::memcpy(arguments[lane], pair, sizeof pair);
    }
}

// Four columns at a time: the compiler's vectors, whatever the level of optimisation.
typedef float Columns __attribute__((vector_size(16)));
constexpr unsigned kColumns = 4;

void multiply(Arguments const& arguments, unsigned)
{
    float a[kM][kK];
    alignas(Columns) float b[kK][kN];
    alignas(Columns) float c[kM][kN];
    for (unsigned lane = 0; lane < kWarpLanes; ++lane)
    {
        Multiply const& of = *static_cast<Multiply const*>(arguments[lane]);
        unsigned const group = lane / 4;
        unsigned const pair = lane % 4 * 2;
        for (unsigned i = 0; i < 4; ++i)
        {
            spread(of.widen, of.a[i], &a[group + i % 2 * 8][pair + i / 2 * 8], 1);
            c[group + i / 2 * 8][pair + i % 2] = of.accumulator[i];
        }
        spread(of.widen, of.b[0], &b[pair][group], kN);
        spread(of.widen, of.b[1], &b[pair + 8][group], kN);
    }
    for (unsigned m = 0; m < kM; ++m)
    {
        for (unsigned n = 0; n < kN; n += kColumns)
        {
            Columns sum;
            std::memcpy(&sum, &c[m][n], sizeof sum);
            for (unsigned k = 0; k < kK; ++k)
            {
                Columns row;
                std::memcpy(&row, &b[k][n], sizeof row);
                sum += a[m][k] * row;
            }
            std::memcpy(&c[m][n], &sum, sizeof sum);
        }
    }
    for (unsigned lane = 0; lane < kWarpLanes; ++lane)
    {
        Multiply const& of = *static_cast<Multiply const*>(arguments[lane]);
        for (unsigned i = 0; i < 4; ++i)
        {
            of.accumulator[i] = c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
        }
    }
}

} // namespace

void load_matrices(Site const& site, uint32_t* registers, unsigned count, void const* row, bool transposed)
{
    check_alignment(site, row);
    check_shared(site, row, true);
    if (current_lane() < count * kRows)
    {
        record_warp_read(row, kRows * sizeof(uint16_t), __builtin_return_address(0));
    }
    Load argument{registers, count, row, transposed};
    meet_warp(site, kAllLanes, &argument, load);
}

uint32_t transpose_matrix(Site const& site, uint32_t pair)
{
    meet_warp(site, kAllLanes, &pair, transpose);
    return pair;
}

void multiply_m16n8k16(
    Site const& site, float (&accumulator)[4], uint32_t const (&a)[4], uint32_t const (&b)[2], Widen widen)
{
    Multiply argument{accumulator, a, b, widen};
    meet_warp(site, kAllLanes, &argument, multiply);
}

} // namespace host_cuda
