// Q2MoE: which kernels take a call.
#include <algorithm>
#include <type_traits>

#include "common/launch.cuh"
#include "common/vector.cuh"
#include "moe/fast.h"
#include "moe/reference.cuh"

namespace q2export
{
namespace
{

constexpr char kOp[] = "moe";

// Pointers travel as kernel arguments, a chunk at a time: a copy from host memory would not outlive the call when a
// CUDA graph replays it.
constexpr int32_t kExpertsPerLaunch = 64;

struct ExpertChunk
{
    Expert experts[kExpertsPerLaunch];
};

__global__ void store_experts_kernel(__grid_constant__ ExpertChunk const chunk, int32_t count, Expert* experts)
{
    for (int32_t e = threadIdx.x; e < count; e += blockDim.x)
    {
        experts[e] = chunk.experts[e];
    }
}

q2export_status store_experts(MoeCall const& call, Expert* experts)
{
    for (int32_t first = 0; first < call.desc.num_experts; first += kExpertsPerLaunch)
    {
        int32_t const count = std::min(kExpertsPerLaunch, call.desc.num_experts - first);
        ExpertChunk chunk{};
        for (int32_t e = 0; e < count; ++e)
        {
            chunk.experts[e] = {call.gate[first + e], call.up[first + e], call.down[first + e]};
        }
        Q2EXPORT_TRY(launch(call.stream, LaunchShape{1}, store_experts_kernel, chunk, count, experts + first));
    }
    return Q2EXPORT_SUCCESS;
}

bool is_fast(MoeCall const& call, Gpu const& gpu, MoeTile const& tile)
{
    return call.desc.dtype != Q2EXPORT_FLOAT32 && shared_bytes(tile) <= gpu.shared_bytes_per_block
        && are_fast_sizes(call.desc, tile);
}

q2export_status check_experts_aligned(char const* name, MoeCall const& call, void const* const* weights)
{
    for (int32_t e = 0; e < call.desc.num_experts; ++e)
    {
        if (!is_vector_aligned(weights[e]))
        {
            return fail(Q2EXPORT_INVALID_ARGUMENT, "%s: %s[%d] is at %p, expected a multiple of %d bytes", kOp, name,
                e, weights[e], kVectorBytes);
        }
    }
    return Q2EXPORT_SUCCESS;
}

// The fast kernels copy vectors.
q2export_status check_alignment(MoeCall const& call)
{
    Q2EXPORT_TRY(check_aligned(kOp, "hidden", call.hidden));
    Q2EXPORT_TRY(check_aligned(kOp, "output", call.output));
    Q2EXPORT_TRY(check_experts_aligned("gate", call, call.gate));
    Q2EXPORT_TRY(check_experts_aligned("up", call, call.up));
    return check_experts_aligned("down", call, call.down);
}

} // namespace

q2export_status run_moe(MoeCall const& call, MoeWorkspace const& parts, Gpu const& gpu, MoePlan const& plan)
{
    bool const fast = is_fast(call, gpu, kMoeTiles[plan.tile]);
    if (fast)
    {
        Q2EXPORT_TRY(check_alignment(call));
    }
    if (!fast || call.desc.num_experts > kExpertsByValue)
    {
        Q2EXPORT_TRY(store_experts(call, parts.experts));
    }
    if (!fast)
    {
        return with_element_type(call.desc.dtype, [&](auto* type) {
            return moe_reference<std::remove_pointer_t<decltype(type)>>(call, parts);
        });
    }
    Q2EXPORT_TRY(route_and_sort(call, parts, kMoeTiles[plan.tile].tokens, plan.overlaps));
    return call.desc.dtype == Q2EXPORT_FLOAT16 ? multiply_experts<__half>(call, parts, gpu, plan)
                                               : multiply_experts<__nv_bfloat16>(call, parts, gpu, plan);
}

} // namespace q2export

extern "C" q2export_status q2export_moe_workspace_size(q2export_moe_desc const* desc, size_t* bytes)
{
    using namespace q2export;
    Q2EXPORT_TRY(check_moe(kOp, desc));
    Q2EXPORT_TRY(check_pointer(kOp, "bytes", bytes));
    *bytes = lay_out(*desc, nullptr).bytes;
    return Q2EXPORT_SUCCESS;
}

extern "C" q2export_status q2export_moe(q2export_moe_desc const* desc, void const* hidden, void const* router_logits,
    void const* const* gate, void const* const* up, void const* const* down, void* output, void* workspace,
    size_t workspace_bytes, q2export_stream stream)
{
    using namespace q2export;
    Q2EXPORT_TRY(check_moe(kOp, desc));
    if (desc->num_tokens == 0)
    {
        return Q2EXPORT_SUCCESS;
    }
    Q2EXPORT_TRY(check_pointer(kOp, "hidden", hidden));
    Q2EXPORT_TRY(check_pointer(kOp, "router_logits", router_logits));
    Q2EXPORT_TRY(check_experts(kOp, "gate", desc->num_experts, gate));
    Q2EXPORT_TRY(check_experts(kOp, "up", desc->num_experts, up));
    Q2EXPORT_TRY(check_experts(kOp, "down", desc->num_experts, down));
    Q2EXPORT_TRY(check_pointer(kOp, "output", output));
    MoeWorkspace const parts = lay_out(*desc, workspace);
    Q2EXPORT_TRY(check_workspace(kOp, parts.bytes, workspace, workspace_bytes));
    Gpu gpu{};
    Q2EXPORT_TRY(current_gpu(&gpu));
    MoeCall const call{{*desc, router_logits, stream}, hidden, gate, up, down, output};
    return run_moe(call, parts, gpu, plan_moe(*desc, gpu));
}
