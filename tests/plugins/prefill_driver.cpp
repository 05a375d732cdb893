// What test_prefill_kernels.py calls of the prefill attention: the plan, and the kernels with a plan of its own.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attention/prefill.cuh"

using namespace q2export;

extern "C" void prefill_plan(q2export_attention_desc const* desc, Gpu const* gpu, PrefillPlan* plan)
{
    *plan = plan_prefill(*desc, *gpu);
}

extern "C" int64_t prefill_shared_bytes_of(int32_t tile, int32_t head_dim)
{
    return static_cast<int64_t>(prefill_shared_bytes(static_cast<PrefillTile>(tile), head_dim));
}

extern "C" q2export_status prefill(q2export_attention_desc const* desc, q2export_attention_tensors const* tensors,
    PrefillPlan const* plan, q2export_stream stream)
{
    return desc->dtype == Q2EXPORT_FLOAT16
        ? prefill_attention(*desc, *tensors, static_cast<__half const*>(tensors->query), *plan, stream)
        : prefill_attention(*desc, *tensors, static_cast<__nv_bfloat16 const*>(tensors->query), *plan, stream);
}
