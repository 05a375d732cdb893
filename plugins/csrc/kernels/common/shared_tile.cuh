// Tiles of 16-bit elements in shared memory: how rows lie there, how they are copied, and how the warpgroup products
// are told of them.
//
// A row's chunks of 16 bytes are permuted, so that the eight rows of an 8x8 matrix, which a warp reads at once, lie in
// eight different groups of banks. In rows of 128 bytes that is the 128-byte swizzle of the PTX ISA.
#pragma once

#include <cstdint>

#include "common/ptx.cuh"

namespace q2export
{

constexpr int kWarpSize = 32;
constexpr unsigned kWholeWarp = 0xFFFFFFFFU;
constexpr int kChunkBytes = 16; // of one asynchronous copy, and of a row of an 8x8 matrix
constexpr int kChunkElements = 8;

__device__ inline int lane_index()
{
    return static_cast<int>(threadIdx.x) % kWarpSize;
}

template <int kColumns, int kRows>
constexpr int kTileBytes = kRows * kColumns * 2;

// Byte offset of a chunk in a tile of rows of kColumns elements.
template <int kColumns>
__device__ inline int tile_offset(int row, int chunk)
{
    static_assert(kColumns % 64 == 0, "a permutation of eight chunks needs rows of eight");
    return row * kColumns * 2 + (chunk ^ (row % 8)) * kChunkBytes;
}

// The layouts of a tile [rows, kColumns]: whole rows, for 8x8 matrices, and blocks of 64 columns, for warpgroups.
template <int kColumns>
struct WholeRows
{
    static constexpr int kRowBytes = kColumns * 2; // from a row to the next

    __device__ static int offset(int row, int chunk)
    {
        return tile_offset<kColumns>(row, chunk);
    }
};

template <int kColumns, int kRows>
struct ColumnBlocks
{
    static constexpr int kBlockColumns = 64;
    static constexpr int kRowBytes = kBlockColumns * 2;
    static constexpr int kBlockBytes = kRows * kRowBytes;

    __device__ static int offset(int row, int chunk)
    {
        constexpr int kChunks = kBlockColumns / kChunkElements;
        return chunk / kChunks * kBlockBytes + tile_offset<kBlockColumns>(row, chunk % kChunks);
    }
};

// Which rows of a tile are there: the others are not read and become zero, so that no product with them is NaN. A row is
// given as a sum, of which `known` is known when it is compiled.
struct RowsBefore
{
    int32_t end;

    __device__ bool has(int row, int known) const
    {
        return known < end - row;
    }
};

struct RowsBetween
{
    int32_t begin;
    int32_t end;

    __device__ bool has(int row, int known) const
    {
        return known >= begin - row && known < end - row;
    }
};

// Starts copying kRows rows of `matrix` [.., kColumns] to a tile; called by kThreads threads, of which this is number
// `thread`.
template <typename Layout, int kColumns, int kRows, int kThreads, typename Element, typename Rows>
__device__ inline void copy_rows(unsigned char* tile, Element const* matrix, Rows const& rows, int thread)
{
    constexpr int kChunks = kColumns / kChunkElements;
    constexpr int kRowsAtOnce = kThreads / kChunks;
    static_assert(kRows % kRowsAtOnce == 0 && (kRowsAtOnce & (kRowsAtOnce - 1)) == 0);
    int const row = thread / kChunks;
    int const chunk = thread % kChunks;
    Element const* const source = matrix + row * kColumns + chunk * kChunkElements;
#pragma unroll
    for (int i = 0; i < kRows; i += kRowsAtOnce)
    {
        // row < kRowsAtOnce, a power of two: row and i have no bit in common, so that the offset of row + i takes this
        // form, in which all but `row` is known when it is compiled.
        int const offset = Layout::offset(row, chunk ^ (i % 8)) + i * Layout::kRowBytes;
        copy_async_16(tile + offset, source + i * kColumns, rows.has(row, i));
    }
}

// The matrix descriptor of what begins at an address, for the 128-byte swizzle; `leading` and `stride` are bytes (PTX ISA
// 8.0, "Matrix Descriptor Format"). The start is moved by adding skip_bytes() to it.
__device__ inline uint64_t matrix_descriptor(uint32_t address, uint32_t leading, uint32_t stride)
{
    constexpr uint64_t kSwizzle128 = 1;
    return (address & 0x3FFFFU) >> 4 | static_cast<uint64_t>(leading >> 4) << 16
        | static_cast<uint64_t>(stride >> 4) << 32 | kSwizzle128 << 62;
}

__device__ constexpr uint64_t skip_bytes(int bytes)
{
    return static_cast<uint64_t>(bytes) >> 4;
}

} // namespace q2export
