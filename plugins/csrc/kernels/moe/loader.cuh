// The loads of the grouped product: cp.async into the ring.
#pragma once

#include <cstdint>

#include "common/ptx.cuh"
#include "moe/product.cuh"
#include "moe/ring.cuh"
#include "moe/work.cuh"

namespace q2export
{

// Walks over the steps of all tiles of this block, ahead of the arithmetic and across the borders of tiles, so that
// memory is busy while a tile is stored. A thread copies one chunk of 16 bytes of a row in each pass.
template <typename Product>
class Loader
{
public:
    // The block's tiles are tile, tile + stride and so on before `end`; `token_tile` is that of the first.
    __device__ Loader(ProductArguments const& arguments, TokenTile const& token_tile, int32_t weight_tiles,
        int32_t tile, int32_t end, int32_t stride)
        : arguments_(arguments)
        , weight_tiles_(weight_tiles)
        , tile_(tile)
        , end_(end)
        , stride_(stride)
        , row_bytes_(arguments.depth * kElementBytes)
        , row_(threadIdx.x / Product::kChunks)
        , chunk_(threadIdx.x % Product::kChunks)
        , token_tile_(token_tile)
    {
        start_tile();
    }

    // Starts the share `part`, of `parts`, of the step's copies to a stage.
    template <int kParts>
    __device__ void copy(unsigned char* stage, int part) const
    {
        constexpr int kPass = Product::kRowsPerPass;
        unsigned char* const target = stage + swizzled(row_, chunk_);
        bool const is_inside = depth_ < arguments_.depth; // beyond, zeros
#pragma unroll
        for (int i = 0; i < Product::kWeightPasses; ++i)
        {
            if (i % kParts == part && (copies_ >> i & 1) != 0)
            {
                copy_async_16_streamed(target + i * kPass * Product::kRowBytes,
                    weights_ + static_cast<int64_t>(Product::output_of(i * kPass)) * row_bytes_, is_inside);
            }
        }
        auto const* const tokens
            = static_cast<unsigned char const*>(arguments_.tokens) + static_cast<int64_t>(depth_) * kElementBytes;
#pragma unroll
        for (int i = 0; i < Product::kTokenPasses; ++i)
        {
            int const pass = Product::kWeightPasses + i;
            if (pass % kParts == part && (copies_ >> pass & 1) != 0)
            {
                copy_async_16(target + Product::kTokensOffset + i * kPass * Product::kRowBytes,
                    tokens + static_cast<int64_t>(token_rows_[i]) * row_bytes_, is_inside);
            }
        }
    }

    // On to the next step, of this tile or of the block's next one. Without a next one there are no more copies.
    __device__ void advance()
    {
        depth_ += kStepDepth;
        weights_ += Product::kRowBytes;
        if (depth_ - chunk_ * Product::kChunkElements >= arguments_.depth)
        {
            tile_ += stride_;
            start_tile();
        }
    }

private:
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
        Expert const expert = find_expert(work.expert);
        void const* const matrix = !Product::kGated ? expert.down : Product::is_up(row_) ? expert.up : expert.gate;
        int32_t const output = work.weight_tile * Product::kOutputs + Product::output_of(row_);
        depth_ = chunk_ * Product::kChunkElements;
        weights_ = static_cast<unsigned char const*>(matrix) + static_cast<int64_t>(output) * row_bytes_
            + depth_ * kElementBytes;
#pragma unroll
        for (int i = 0; i < Product::kWeightPasses; ++i)
        {
            bool const is_row = output + Product::output_of(i * Product::kRowsPerPass) < arguments_.rows;
            copies_ |= is_row ? 1U << i : 0U;
        }
#pragma unroll
        for (int i = 0; i < Product::kTokenPasses; ++i)
        {
            int32_t const token = row_ + i * Product::kRowsPerPass;
            if (token < work.tokens)
            {
                int32_t const position = work.first_position + token;
                token_rows_[i] = Product::kGated ? arguments_.sorted[position] / arguments_.top_k : position;
                copies_ |= 1U << (Product::kWeightPasses + i);
            }
        }
    }

    __device__ Expert find_expert(int32_t expert) const
    {
        if (arguments_.table != nullptr)
        {
            return arguments_.table[expert];
        }
        return arguments_.experts[expert];
    }

    ProductArguments const& arguments_;
    int32_t weight_tiles_;
    int32_t tile_;
    int32_t end_;
    int32_t stride_;
    int32_t row_bytes_; // of the matrices and of the tokens
    int row_; // of the stage, in the first pass
    int chunk_;
    TokenTile token_tile_; // of the tile to start next
    uint32_t copies_; // bit i: pass i of the weights, then of the tokens, has a row
    unsigned char const* weights_; // the first pass's chunk
    int32_t depth_; // its first element's column
    int32_t token_rows_[Product::kTokenPasses];
};

} // namespace q2export
