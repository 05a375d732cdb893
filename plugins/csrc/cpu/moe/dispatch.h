// What every mixture of experts does around its matrices: routes tokens, sorts them by expert, adds up what comes back.
#pragma once

#include <cstdint>

#include "q2export/cpu.h"

namespace q2export::cpu
{

struct MoeShape
{
    int64_t num_tokens;
    int64_t hidden_size;
    int64_t intermediate_size;
    int32_t num_experts;
    int32_t top_k;
    bool norm_topk_prob;

    int64_t slots() const
    {
        return num_tokens * top_k;
    }
};

// Refuses sizes and pointers that every mixture of experts refuses.
q2export_status check_moe(char const* op, MoeShape const& shape, int32_t norm_topk_prob);
q2export_status check_moe_pointers(char const* op, void const* hidden, void const* router_logits, void const* output);

// `pool`, or none where starting its threads takes longer than what there is to do for each of so few tokens.
q2export_cpu_parallel_for const* threads_for(int64_t tokens, q2export_cpu_parallel_for const* pool);

// Slots are pairs of a token and one of its experts, [num_tokens, top_k]; rows are slots sorted by expert, those of one
// expert by token. Lies in the thread's scratch Scratch::kExperts.
class Dispatch
{
public:
    Dispatch(MoeShape const& shape, float const* router_logits, q2export_cpu_parallel_for const* pool);

    int64_t first_row(int32_t expert) const
    {
        return first_row_[expert];
    }

    int64_t rows(int32_t expert) const
    {
        return first_row_[expert + 1] - first_row_[expert];
    }

    int64_t token(int64_t row) const
    {
        return token_of_row_[row];
    }

    // output [num_tokens, hidden_size]: each token's results [slots, hidden_size] times their weights, in the order in
    // which it chose its experts.
    void combine(float const* results, float* output, q2export_cpu_parallel_for const* pool) const;

private:
    void sort();

    MoeShape shape_;
    float* weights_;        // [num_tokens, top_k]
    int32_t* experts_;      // [num_tokens, top_k]
    int32_t* row_of_slot_;  // [num_tokens, top_k]
    int32_t* token_of_row_; // [slots]
    int32_t* first_row_;    // [num_experts + 1]
};

} // namespace q2export::cpu
