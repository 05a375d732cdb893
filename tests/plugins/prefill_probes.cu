// What test_prefill_kernels.py calls of the prefill attention: the plan, the kernels with a plan of its own, and where
// the lanes of a warp read and write shared memory.
#include "attention/prefill.cuh"
#include "attention/prefill_rows.cuh"
#include "common/launch.cuh"

namespace q2export
{
namespace
{

// offsets: [3, kHeadDim / 8, 32], per chunk of a row of the tile and lane: of keys and of values (chunks that are even),
// as load_matrix_x4 reads them, and of the output, as lanes write 4 bytes of each of 8 rows.
template <int kHeadDim>
__global__ void offsets_kernel(int32_t* offsets)
{
    constexpr int kChunks = kHeadDim / kChunkElements;
    int const lane = lane_index();
    for (int chunk = 0; chunk < kChunks; ++chunk)
    {
        int32_t* const keys = offsets + chunk * kWarpSize + lane;
        int32_t* const values = keys + kChunks * kWarpSize;
        int32_t* const output = values + kChunks * kWarpSize;
        *keys = chunk % 2 == 0 ? skip_chunks(columns_first<kHeadDim>(0), chunk) : -1;
        *values = chunk % 2 == 0 ? skip_chunks(rows_first<kHeadDim>(0), chunk) : -1;
        *output = tile_offset<kHeadDim>(lane / 4, chunk) + lane % 4 * 4;
    }
}

} // namespace
} // namespace q2export

using namespace q2export;

// With the tile that the plan would choose where `tile` is negative.
extern "C" void probe_prefill_plan(
    q2export_attention_desc const* desc, Gpu const* gpu, int32_t tile, PrefillPlan* plan)
{
    *plan = tile < 0 ? plan_prefill(*desc, *gpu) : plan_prefill(*desc, *gpu, static_cast<PrefillTile>(tile));
}

extern "C" int64_t probe_prefill_shared_bytes(int32_t tile, int32_t head_dim)
{
    return static_cast<int64_t>(prefill_shared_bytes(static_cast<PrefillTile>(tile), head_dim));
}

extern "C" q2export_status probe_prefill_offsets(int32_t head_dim, int32_t* offsets)
{
    LaunchShape shape{1};
    shape.threads = kWarpSize;
    return launch(nullptr, shape, head_dim == 64 ? offsets_kernel<64> : offsets_kernel<128>, offsets);
}

extern "C" q2export_status probe_prefill(q2export_attention_desc const* desc,
    q2export_attention_tensors const* tensors, PrefillPlan const* plan, q2export_stream stream)
{
    return desc->dtype == Q2EXPORT_FLOAT16
        ? prefill_attention(*desc, *tensors, static_cast<__half const*>(tensors->query), *plan, stream)
        : prefill_attention(*desc, *tensors, static_cast<__nv_bfloat16 const*>(tensors->query), *plan, stream);
}
