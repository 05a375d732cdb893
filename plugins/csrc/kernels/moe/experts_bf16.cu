#include "moe/experts.cuh"

template q2export_status q2export::multiply_experts<__nv_bfloat16>(
    MoeCall const& call, MoeWorkspace const& parts, Gpu const& gpu, MoePlan const& plan);
