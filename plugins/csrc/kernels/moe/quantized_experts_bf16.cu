#include "moe/quantized_experts.cuh"

template q2export_status q2export::multiply_quantized_experts<__nv_bfloat16>(
    QuantizedMoeCall const& call, MoeWorkspace const& parts, Gpu const& gpu, MoePlan const& plan);
