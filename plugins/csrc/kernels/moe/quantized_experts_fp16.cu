#include "moe/quantized_experts.cuh"

template q2export_status q2export::multiply_quantized_experts<__half>(
    QuantizedMoeCall const& call, MoeWorkspace const& parts, Gpu const& gpu, MoePlan const& plan);
