#include "moe/experts.cuh"

template q2export_status q2export::multiply_experts<__half>(
    MoeCall const& call, MoeWorkspace const& parts, Gpu const& gpu, MoePlan const& plan);
