// Joining what the warps of a block, and then the blocks of a unit, have found for their keys.
//
// A partial result is a maximum, scaled, a sum and an output relative to the maximum. They are joined in the order of the keys,
// whoever comes last, so that two runs give the same bits.
#pragma once

#include <cmath>

#include "attention/decode_task.cuh"
#include "common/vector.cuh"

namespace q2export
{

// A warp's results in shared memory: output [kRows][kStride], then maximum and sum [kRows]. The padding of a row puts
// the eight rows a warp writes at once into different banks.
template <typename Shape>
struct TeamResult
{
    static constexpr int kStride = Shape::kHeadDim + 8;
    static constexpr int kSoftmaxOffset = Shape::kRows * kStride * static_cast<int>(sizeof(float));
    static_assert(kSoftmaxOffset + Shape::kRows * static_cast<int>(sizeof(float2)) <= Shape::kTeamBytes);

    float* output;
    float2* softmax;

    __device__ explicit TeamResult(unsigned char* team)
        : output(reinterpret_cast<float*>(team))
        , softmax(reinterpret_cast<float2*>(team + kSoftmaxOffset))
    {
    }
};

template <typename Shape>
__device__ inline void write_team_result(
    unsigned char* team, float const (&output)[Shape::kHeadDim / 8][4], DecodeSoftmax const& softmax)
{
    TeamResult<Shape> const result(team);
    int const warp_row = static_cast<int>(threadIdx.x) % Shape::kTeamThreads / kWarpSize * kFragmentRows;
#pragma unroll
    for (int r = 0; r < 2; ++r)
    {
        int const row = warp_row + lane_index() / 4 + 8 * r;
#pragma unroll
        for (int n = 0; n < Shape::kHeadDim / 8; ++n)
        {
            *reinterpret_cast<float2*>(result.output + row * result.kStride + channel_of(n))
                = make_float2(output[n][2 * r], output[n][2 * r + 1]);
        }
        float const sum = sum_of_row(softmax.sum[0][r]);
        if (lane_index() % 4 == 0)
        {
            result.softmax[row] = make_float2(softmax.maximum[0][r] * softmax.scale, sum);
        }
    }
}

// Weight of a partial result with this maximum; none where no key was seen.
__device__ inline float weight_of(float maximum, float highest)
{
    return maximum == -INFINITY ? 0.0F : exp2_fast(maximum - highest);
}

__device__ inline void add_weighted(float4& sum, float weight, float4 const& values)
{
    sum.x = fmaf(weight, values.x, sum.x);
    sum.y = fmaf(weight, values.y, sum.y);
    sum.z = fmaf(weight, values.z, sum.z);
    sum.w = fmaf(weight, values.w, sum.w);
}

// Writes four channels of a row; zeros for padding.
template <typename Element>
__device__ inline void store_output(
    DecodeArguments<Element> const& arguments, DecodeTask const& task, int row, int channel, float4 const& values)
{
    bool const is_padding = task.is_padding(row);
    uint2 const packed = make_uint2(pack2<Element>(values.x, values.y), pack2<Element>(values.z, values.w));
    *reinterpret_cast<uint2*>(arguments.output + task.row_offset(arguments.desc, row) + channel)
        = is_padding ? make_uint2(0U, 0U) : packed;
}

// Where a part's rows lie among the partial results.
template <typename Shape, typename Element>
__device__ inline int64_t partial_row(
    DecodeArguments<Element> const& arguments, DecodeTask const& task, int part, int row)
{
    int32_t const rows = static_cast<int32_t>(arguments.desc.sequence) * arguments.group;
    int32_t const stride = rows < Shape::kRows ? rows : Shape::kRows;
    return (task.unit * arguments.splits + part) * stride + row;
}

// Joins the teams; to the output where there is one part, else to the workspace.
template <typename Shape, typename Element>
__device__ inline void merge_teams(
    DecodeArguments<Element> const& arguments, DecodeTask const& task, unsigned char* shared)
{
    constexpr int kVectors = Shape::kHeadDim / 4;
    for (int item = static_cast<int>(threadIdx.x); item < task.rows * kVectors; item += Shape::kThreads)
    {
        int const row = item / kVectors;
        int const channel = item % kVectors * 4;
        float maximum = -INFINITY;
#pragma unroll
        for (int team = 0; team < Shape::kTeams; ++team)
        {
            maximum = fmaxf(maximum, TeamResult<Shape>(shared + team * Shape::kTeamBytes).softmax[row].x);
        }
        float4 output = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
        float sum = 0.0F;
#pragma unroll
        for (int team = 0; team < Shape::kTeams; ++team)
        {
            TeamResult<Shape> const result(shared + team * Shape::kTeamBytes);
            float const weight = weight_of(result.softmax[row].x, maximum);
            add_weighted(
                output, weight, *reinterpret_cast<float4 const*>(result.output + row * result.kStride + channel));
            sum = fmaf(weight, result.softmax[row].y, sum);
        }
        if (task.parts == 1)
        {
            float4 normalised = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
            add_weighted(normalised, 1.0F / sum, output);
            store_output(arguments, task, row, channel, normalised);
            continue;
        }
        int64_t const target = partial_row<Shape>(arguments, task, task.part, row);
        *reinterpret_cast<float4*>(arguments.partials.output + target * Shape::kHeadDim + channel) = output;
        if (channel == 0)
        {
            arguments.partials.softmax[target] = make_float2(maximum, sum);
        }
    }
}

// Whether all other parts of the unit have left their results; the same in all threads.
template <typename Shape, typename Element>
__device__ inline bool is_last_part(
    DecodeArguments<Element> const& arguments, DecodeTask const& task, unsigned char* shared)
{
    // Behind the teams' results, and behind the weights of combine_parts.
    uint32_t* const arrived = reinterpret_cast<uint32_t*>(shared + Shape::kSharedBytes - sizeof(uint32_t));
    __threadfence(); // this thread's results, before the arrival is seen
    __syncthreads();
    if (threadIdx.x == 0)
    {
        *arrived = atomicAdd(arguments.partials.arrivals + task.unit, 1U);
    }
    __syncthreads();
    __threadfence(); // the others' results, after their arrival was seen
    return *arrived + 1 == static_cast<uint32_t>(task.parts);
}

// Joins the parts of the unit and writes the output.
template <typename Shape, typename Element>
__device__ inline void combine_parts(
    DecodeArguments<Element> const& arguments, DecodeTask const& task, unsigned char* shared)
{
    float* const weights = reinterpret_cast<float*>(shared); // [rows][parts]
    static_assert(Shape::kRows * kMaxSplits * sizeof(float) <= Shape::kSharedBytes - sizeof(uint32_t));
    int const warp = static_cast<int>(threadIdx.x) / kWarpSize;
    for (int row = warp; row < task.rows; row += Shape::kWarps)
    {
        float2 softmax[kMaxSplits / kWarpSize];
        float maximum = -INFINITY;
#pragma unroll
        for (int i = 0; i < kMaxSplits / kWarpSize; ++i)
        {
            int const part = i * kWarpSize + lane_index();
            softmax[i] = make_float2(-INFINITY, 0.0F);
            if (part < task.parts)
            {
                softmax[i] = __ldcg(arguments.partials.softmax + partial_row<Shape>(arguments, task, part, row));
            }
            maximum = fmaxf(maximum, softmax[i].x);
        }
        maximum = highest_of_warp(maximum);
        float sum = 0.0F;
#pragma unroll
        for (int i = 0; i < kMaxSplits / kWarpSize; ++i)
        {
            softmax[i].x = weight_of(softmax[i].x, maximum);
            sum = fmaf(softmax[i].x, softmax[i].y, sum);
        }
        sum = sum_of_warp(sum);
#pragma unroll
        for (int i = 0; i < kMaxSplits / kWarpSize; ++i)
        {
            int const part = i * kWarpSize + lane_index();
            if (part < task.parts)
            {
                weights[row * task.parts + part] = softmax[i].x / sum;
            }
        }
    }
    __syncthreads();

    constexpr int kVectors = Shape::kHeadDim / 4;
    for (int item = static_cast<int>(threadIdx.x); item < task.rows * kVectors; item += Shape::kThreads)
    {
        int const row = item / kVectors;
        int const channel = item % kVectors * 4;
        float4 output = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
#pragma unroll 16
        for (int part = 0; part < task.parts; ++part)
        {
            int64_t const source = partial_row<Shape>(arguments, task, part, row);
            float4 const* const values
                = reinterpret_cast<float4 const*>(arguments.partials.output + source * Shape::kHeadDim + channel);
            add_weighted(output, weights[row * task.parts + part], __ldcg(values));
        }
        store_output(arguments, task, row, channel, output);
    }
}

} // namespace q2export
