#include "sequence.h"

namespace q2export::runtime
{
namespace
{

std::vector<int64_t> keys(std::map<int64_t, std::optional<std::string>> const& stop_ids)
{
    std::vector<int64_t> ids;
    for (auto const& [id, unused] : stop_ids)
    {
        static_cast<void>(unused);
        ids.push_back(id);
    }
    return ids;
}

} // namespace

Sequence::Sequence(Request request)
    : request_(std::move(request))
    , sampler_(request_.options, request_.prompt, request_.seed, keys(request_.stop_ids))
    , detokenizer_(request_.tokenizer ? request_.tokenizer->detokenizer() : nullptr)
    , stop_strings_(request_.stop_strings)
{
    token_ids.reserve(request_.max_new_tokens);
}

Event Sequence::advance(float* logits, size_t vocab_size)
{
    Event event;
    std::vector<float> untouched;
    if (request_.options.logprobs)
    {
        untouched.assign(logits, logits + vocab_size);
    }
    event.token_id = sampler_.choose(logits, vocab_size);
    if (request_.options.logprobs)
    {
        auto const top = static_cast<size_t>(*request_.options.logprobs);
        event.logprobs = token_logprobs(untouched.data(), vocab_size, event.token_id, top);
        logprobs.push_back(*event.logprobs);
    }
    token_ids.push_back(event.token_id);
    auto const stop = request_.stop_ids.find(event.token_id);
    bool const stopped = stop != request_.stop_ids.end();
    bool const full = token_ids.size() == request_.max_new_tokens;
    event.text = stopped ? "" : new_text(event.token_id);
    if ((stopped || full) && !stop_strings_.matched())
    {
        event.text += last_text();
    }
    if (stop_strings_.matched())
    {
        finish_reason = Q2E_FINISH_STOP;
        stop_string = stop_strings_.matched();
    }
    else if (stopped)
    {
        finish_reason = Q2E_FINISH_STOP;
        stop_string = stop->second;
    }
    else if (full)
    {
        finish_reason = Q2E_FINISH_LENGTH;
    }
    event.finish_reason = finish_reason;
    text += event.text;
    return event;
}

std::string Sequence::new_text(int64_t token)
{
    if (detokenizer_ == nullptr)
    {
        return "";
    }
    std::string const piece = detokenizer_->feed(token);
    bool const early = static_cast<int64_t>(token_ids.size()) < request_.options.min_new_tokens;
    return early ? piece : stop_strings_.feed(piece);
}

// What was held back: half a character, or the start of a stop string that did not come.
std::string Sequence::last_text()
{
    if (detokenizer_ == nullptr)
    {
        return "";
    }
    std::string const rest = stop_strings_.feed(detokenizer_->flush());
    return rest + stop_strings_.flush();
}

} // namespace q2export::runtime
