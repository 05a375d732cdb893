#include "handles.h"

#include <cmath>

using q2export::runtime::copy_out;
using q2export::runtime::TokenLogprobs;

namespace
{

void split(TokenLogprobs const& from, std::vector<int64_t>& ids, std::vector<double>& logprobs)
{
    for (auto const& [id, logprob] : from.top)
    {
        ids.push_back(id);
        logprobs.push_back(logprob);
    }
}

} // namespace

StoredResult::StoredResult(std::shared_ptr<q2export::runtime::Sequence> ended)
    : sequence(std::move(ended))
{
    for (TokenLogprobs const& each : sequence->logprobs)
    {
        logprobs.push_back(each.logprob);
        split(each, top_token_ids, top_logprobs);
    }
}

void StoredResult::fill(q2e_result* result) const
{
    q2e_result filled{};
    filled.token_ids = sequence->token_ids.data();
    filled.token_count = sequence->token_ids.size();
    filled.finish_reason = sequence->finish_reason;
    filled.text = sequence->has_text() ? sequence->text.c_str() : nullptr;
    filled.text_bytes = sequence->text.size();
    filled.stop_string = sequence->stop_string ? sequence->stop_string->c_str() : nullptr;
    filled.prompt_tokens = sequence->prompt().size();
    filled.prefill_seconds = sequence->timings.prefill_seconds;
    filled.time_to_first_token = sequence->timings.time_to_first_token;
    filled.decode_seconds = sequence->timings.decode_seconds;
    filled.logprobs = logprobs.empty() ? nullptr : logprobs.data();
    filled.top_count = logprobs.empty() ? 0 : top_token_ids.size() / logprobs.size();
    filled.top_token_ids = top_token_ids.data();
    filled.top_logprobs = top_logprobs.data();
    copy_out(filled, result);
}

namespace q2export::runtime
{

q2e_status report(q2e_status status, char const* message, q2e_error** error) noexcept
{
    if (error != nullptr)
    {
        try
        {
            *error = new q2e_error{status, message};
        }
        catch (std::bad_alloc const&)
        {
            *error = nullptr;
        }
    }
    return status;
}

void require(void const* pointer, char const* name)
{
    if (pointer == nullptr)
    {
        throw Error(Q2E_ARGUMENT_ERROR, std::string(name) + " must not be NULL");
    }
}

GivenOptions const& given_options(q2e_options const* options)
{
    static GivenOptions const none;
    return options == nullptr ? none : options->given;
}

std::vector<int64_t> token_ids_of(q2e_prompt const* prompt)
{
    check_size(prompt);
    if (prompt->token_count == 0)
    {
        return {};
    }
    require(prompt->token_ids, "prompt->token_ids");
    return {prompt->token_ids, prompt->token_ids + prompt->token_count};
}

void fill_event(q2e_event* out, size_t prompt, Event const& event, std::vector<int64_t>& top_token_ids,
    std::vector<double>& top_logprobs)
{
    top_token_ids.clear();
    top_logprobs.clear();
    q2e_event filled{};
    filled.prompt = prompt;
    filled.token_id = event.token_id;
    filled.finish_reason = event.finish_reason;
    filled.text = event.text.c_str();
    filled.text_bytes = event.text.size();
    filled.logprob = event.logprobs ? event.logprobs->logprob : NAN;
    if (event.logprobs)
    {
        split(*event.logprobs, top_token_ids, top_logprobs);
    }
    filled.top_count = top_token_ids.size();
    filled.top_token_ids = top_token_ids.data();
    filled.top_logprobs = top_logprobs.data();
    copy_out(filled, out);
}

} // namespace q2export::runtime
