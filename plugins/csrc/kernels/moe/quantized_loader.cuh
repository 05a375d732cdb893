// The loads of the grouped product over packed weights: cp.async into the ring.
#pragma once

#include <cstdint>

#include "common/ptx.cuh"
#include "moe/quantized_product.cuh"
#include "moe/ring.cuh"
#include "moe/work.cuh"

namespace q2export
{

// Walks over the steps of all tiles of this block, as Loader does. Rows are whole steps long. In each step a thread
// copies chunks of codes, chunks of tokens, and, one thread for each row, the row's scales.
template <typename Product>
class QuantizedLoader
{
public:
    // The block's tiles are tile, tile + stride and so on before `end`; `token_tile` is that of the first.
    __device__ QuantizedLoader(QuantizedArguments const& arguments, TokenTile const& token_tile, int32_t weight_tiles,
        int32_t tile, int32_t end, int32_t stride)
        : arguments_(arguments)
        , weight_tiles_(weight_tiles)
        , tile_(tile)
        , end_(end)
        , stride_(stride)
        , token_tile_(token_tile)
    {
        start_tile();
    }

    // Starts the share `part`, of `parts`, of the step's copies to a stage.
    template <int kParts>
    __device__ void copy(unsigned char* stage, int part) const
    {
        constexpr int kPass = Product::kRowsPerPass;
        int const thread = static_cast<int>(threadIdx.x);
        int const row = thread / Product::kChunks;
        int const chunk = thread % Product::kChunks;
        unsigned char* const codes = stage + swizzled_codes(row, chunk);
        int64_t const row_bytes = code_row_bytes();
#pragma unroll
        for (int i = 0; i < Product::kWeightPasses; ++i)
        {
            if (i % kParts == part && (copies_ >> i & 1) != 0)
            {
                copy_async_16_streamed(codes + i * kPass * kCodeRowBytes,
                    codes_ + Product::output_of(i * kPass) * Product::kMatrices * row_bytes);
            }
        }
        int const place = Product::kTokensOffset + swizzled_tokens<Product::kTokenRowBytes>(row, chunk);
        auto const* const elements = static_cast<unsigned char const*>(arguments_.tokens)
            + static_cast<int64_t>(depth_) * kElementBytes + chunk * Product::kChunkBytes;
#pragma unroll
        for (int i = 0; i < Product::kTokenPasses; ++i)
        {
#pragma unroll
            for (int k = 0; k < Product::kTokenCopies; ++k)
            {
                int const copied = Product::kWeightPasses + i * Product::kTokenCopies + k;
                if (copied % kParts == part && (copies_ >> (Product::kWeightPasses + i) & 1) != 0)
                {
                    copy_async_16(stage + (place ^ k * kCodeRowBytes) + i * kPass * Product::kTokenRowBytes,
                        elements + static_cast<int64_t>(token_rows_[i]) * arguments_.depth * kElementBytes
                            + k * kCodeRowBytes);
                }
            }
        }
        if (part == 0 && (copies_ >> kScalesBit & 1) != 0)
        {
            copy_scales(stage + Product::kScalesOffset + thread * Product::kScaleBytes);
        }
    }

    // On to the next step, of this tile or of the block's next one. Without a next one there are no more copies.
    __device__ void advance()
    {
        depth_ += Product::kDepth;
        codes_ += kCodeRowBytes;
        if (depth_ >= arguments_.depth)
        {
            tile_ += stride_;
            start_tile();
        }
    }

private:
    static constexpr int kScalesBit = Product::kWeightPasses + Product::kTokenPasses;
    static_assert(kScalesBit < 32);

    __device__ int64_t code_row_bytes() const
    {
        return static_cast<int64_t>(arguments_.depth) * Product::kBits / 8;
    }

    // A copy has at least four bytes: where a step has a single scale, its neighbour in memory comes along. Rows have
    // whole steps and matrices an even number of rows, so that several scales begin at their own size's multiple, and a
    // single one has a neighbour in the tensor.
    __device__ void copy_scales(unsigned char* target) const
    {
        int64_t const first = scales_ + (depth_ >> arguments_.block_shift);
        if (Product::kScaleBytes == 8 && arguments_.block_shift == 5)
        {
            copy_async_small<8>(target, arguments_.scales + first * 2);
        }
        else
        {
            copy_async_small<4>(target, arguments_.scales + (first & ~int64_t{1}) * 2);
        }
    }

    // Rows that the tile does not have are not copied: what is in their place spoils only results nobody stores.
    __device__ void start_tile()
    {
        copies_ = 0;
        if (tile_ >= end_)
        {
            return;
        }
        Work const work = find_work(token_tile_, weight_tiles_, Product::kShape.tokens, tile_);
        if (tile_ + stride_ < end_)
        {
            token_tile_ = arguments_.tiles[(tile_ + stride_) / weight_tiles_]; // in time for the next tile
        }
        int const thread = static_cast<int>(threadIdx.x);
        depth_ = 0;
        start_weights(work, thread);
        start_scales(work, thread);
#pragma unroll
        for (int i = 0; i < Product::kTokenPasses; ++i)
        {
            int32_t const token = thread / Product::kChunks + i * Product::kRowsPerPass;
            if (token < work.tokens)
            {
                int32_t const position = work.first_position + token;
                token_rows_[i] = Product::kGated ? arguments_.sorted[position] / arguments_.top_k : position;
                copies_ |= 1U << (Product::kWeightPasses + i);
            }
        }
    }

    __device__ void start_weights(Work const& work, int thread)
    {
        int const row = thread / Product::kChunks;
        int32_t const output = work.weight_tile * Product::kOutputs + Product::output_of(row);
        codes_ = arguments_.codes + row_of(work.expert, output, row) * code_row_bytes()
            + thread % Product::kChunks * Product::kChunkBytes;
#pragma unroll
        for (int i = 0; i < Product::kWeightPasses; ++i)
        {
            bool const is_row = output + Product::output_of(i * Product::kRowsPerPass) < arguments_.rows;
            copies_ |= is_row ? 1U << i : 0U;
        }
    }

    __device__ void start_scales(Work const& work, int thread)
    {
        int32_t const output = work.weight_tile * Product::kOutputs + Product::output_of(thread);
        scales_ = row_of(work.expert, output, thread) * (arguments_.depth >> arguments_.block_shift);
        copies_ |= thread < Product::kShape.weight_rows && output < arguments_.rows ? 1U << kScalesBit : 0U;
    }

    // The row in memory, counted from the first expert's, of a row in shared memory.
    __device__ int64_t row_of(int32_t expert, int32_t output, int row) const
    {
        return (static_cast<int64_t>(expert) * arguments_.rows + output) * Product::kMatrices
            + (Product::is_up(row) ? 1 : 0);
    }

    QuantizedArguments const& arguments_;
    int32_t weight_tiles_;
    int32_t tile_;
    int32_t end_;
    int32_t stride_;
    TokenTile token_tile_; // of the tile to start next
    uint32_t copies_; // bit i: pass i of the weights, then of the tokens, has a row; then: there is a row of scales
    unsigned char const* codes_; // the first pass's chunk
    int64_t scales_; // the row's first
    int32_t depth_; // of the step
    int32_t token_rows_[Product::kTokenPasses];
};

} // namespace q2export
