#include "moe/dispatch.h"

#include <algorithm>

#include "common/error.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "moe/routing.h"

namespace q2export::cpu
{
namespace
{

constexpr int32_t kMaxExperts = 4096;
constexpr int64_t kFewTokens = 8;

} // namespace

q2export_status check_moe(char const* op, MoeShape const& shape, int32_t norm_topk_prob)
{
    Q2EXPORT_TRY(check_range(op, "num_tokens", shape.num_tokens, 0, INT32_MAX));
    Q2EXPORT_TRY(check_range(op, "hidden_size", shape.hidden_size, 1, INT32_MAX));
    Q2EXPORT_TRY(check_range(op, "intermediate_size", shape.intermediate_size, 1, INT32_MAX / 2));
    Q2EXPORT_TRY(check_range(op, "num_experts", shape.num_experts, 1, kMaxExperts));
    Q2EXPORT_TRY(check_range(op, "top_k", shape.top_k, 1, shape.num_experts));
    Q2EXPORT_TRY(check_range(op, "norm_topk_prob", norm_topk_prob, 0, 1));
    Q2EXPORT_TRY(check_range(op, "num_tokens * top_k", shape.slots(), 0, INT32_MAX));
    Q2EXPORT_TRY(check_elements(op, "gate", shape.intermediate_size, shape.hidden_size, shape.num_experts));
    int64_t const widest = std::max(shape.hidden_size, shape.intermediate_size);
    return check_elements(op, "hidden", shape.num_tokens, widest, shape.top_k);
}

q2export_status check_moe_pointers(char const* op, void const* hidden, void const* router_logits, void const* output)
{
    Q2EXPORT_TRY(check_pointer(op, "hidden", hidden));
    Q2EXPORT_TRY(check_pointer(op, "router_logits", router_logits));
    return check_pointer(op, "output", output);
}

q2export_cpu_parallel_for const* threads_for(int64_t tokens, q2export_cpu_parallel_for const* pool)
{
    return tokens <= kFewTokens ? nullptr : pool;
}

Dispatch::Dispatch(MoeShape const& shape, float const* router_logits, q2export_cpu_parallel_for const* pool)
    : shape_(shape)
{
    int64_t const slots = shape.slots();
    int64_t const numbers = 4 * slots + shape.num_experts + 1;
    weights_ = static_cast<float*>(thread_scratch(Scratch::kExperts, static_cast<size_t>(numbers) * sizeof(float)));
    experts_ = reinterpret_cast<int32_t*>(weights_ + slots);
    row_of_slot_ = experts_ + slots;
    token_of_row_ = row_of_slot_ + slots;
    first_row_ = token_of_row_ + slots;
    parallel_for(threads_for(shape.num_tokens, pool), shape.num_tokens, [&](int64_t token) {
        int64_t const slot = token * shape.top_k;
        route_token(router_logits + token * shape.num_experts, shape.num_experts, shape.top_k, shape.norm_topk_prob,
            experts_ + slot, weights_ + slot);
    });
    sort();
}

void Dispatch::sort()
{
    int64_t const slots = shape_.slots();
    std::fill(first_row_, first_row_ + shape_.num_experts + 1, 0);
    for (int64_t slot = 0; slot < slots; ++slot)
    {
        ++first_row_[experts_[slot] + 1];
    }
    for (int32_t expert = 0; expert < shape_.num_experts; ++expert)
    {
        first_row_[expert + 1] += first_row_[expert];
    }
    for (int64_t slot = 0; slot < slots; ++slot)
    {
        int32_t const row = first_row_[experts_[slot]]++;
        row_of_slot_[slot] = row;
        token_of_row_[row] = static_cast<int32_t>(slot / shape_.top_k);
    }
    for (int32_t expert = shape_.num_experts; expert > 0; --expert)
    {
        first_row_[expert] = first_row_[expert - 1];
    }
    first_row_[0] = 0;
}

void Dispatch::combine(float const* results, float* output, q2export_cpu_parallel_for const* pool) const
{
    int64_t const width = shape_.hidden_size;
    parallel_for(threads_for(shape_.num_tokens, pool), shape_.num_tokens, [&](int64_t token) {
        float* const target = output + token * width;
        std::fill(target, target + width, 0.0f);
        for (int64_t slot = token * shape_.top_k; slot < (token + 1) * shape_.top_k; ++slot)
        {
            float const* const result = results + row_of_slot_[slot] * width;
            for (int64_t i = 0; i < width; ++i)
            {
                target[i] += result[i] * weights_[slot];
            }
        }
    });
}

} // namespace q2export::cpu
