// The heuristics of decode attention for the tests; they are pure functions of the description and the GPU.
#include "attention/heuristics.h"

using namespace q2export;

extern "C" DecodePlan decode_plan(q2export_attention_desc const* desc, Gpu const* gpu)
{
    return plan_decode(*desc, *gpu);
}

extern "C" int32_t attention_kernel(q2export_attention_desc const* desc)
{
    return static_cast<int32_t>(choose_attention_kernel(*desc));
}

extern "C" int64_t partial_blocks(q2export_attention_desc const* desc)
{
    return max_partial_blocks(*desc);
}

extern "C" int64_t blocks_at_a_time(Gpu const* gpu, int32_t warps)
{
    return decode_slots(*gpu, warps);
}
