// One sequence while it is generated: from the logits of each step to tokens, text and its end (runtime/sequence.py).
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "generate/sampling.h"
#include "generate/stopping.h"
#include "q2export/q2export.h"
#include "text/tokenizer.h"

namespace q2export::runtime
{

// One token as it comes.
struct Event
{
    int64_t token_id = 0;
    std::string text; // what can now be shown
    q2e_finish_reason finish_reason = Q2E_FINISH_NONE;
    std::optional<TokenLogprobs> logprobs;
};

struct Timings
{
    double prefill_seconds = 0;
    double time_to_first_token = 0;
    double decode_seconds = 0;
};

// What is to be generated, checked in full.
struct Request
{
    size_t index = 0; // in the caller's batch
    std::vector<int64_t> prompt;
    GenerationOptions options;
    std::optional<uint64_t> seed;
    size_t max_new_tokens = 0;
    std::map<int64_t, std::optional<std::string>> stop_ids; // each with the stop string it stands for
    std::vector<std::string> stop_strings;
    std::shared_ptr<Tokenizer const> tokenizer; // null: no text
};

class Sequence
{
public:
    explicit Sequence(Request request);

    // Choose the next token from its logits [vocab_size], which are changed. Throws GenerationError.
    Event advance(float* logits, size_t vocab_size);

    size_t index() const
    {
        return request_.index;
    }

    std::vector<int64_t> const& prompt() const
    {
        return request_.prompt;
    }

    // Most tokens of prompt and text together.
    size_t longest() const
    {
        return request_.prompt.size() + request_.max_new_tokens;
    }

    // Tokens of the prompt and generated so far.
    size_t length() const
    {
        return request_.prompt.size() + token_ids.size();
    }

    bool has_text() const
    {
        return detokenizer_ != nullptr;
    }

    // Set by any thread: the sequence ends before its next step.
    std::atomic<bool> cancelled{false};

    // Called with each token, in the thread that steps; may be empty.
    std::function<void(Sequence&, Event const&)> on_event;
    // Called once when it ends without a last token: cancelled, or with the error; may be empty.
    std::function<void(Sequence&)> on_end;

    std::vector<int64_t> token_ids; // generated
    std::string text;
    q2e_finish_reason finish_reason = Q2E_FINISH_NONE;
    std::optional<std::string> stop_string;
    std::vector<TokenLogprobs> logprobs;
    Timings timings;
    std::exception_ptr error;
    double admitted_at = 0; // on the clock of the batch

private:
    std::string new_text(int64_t token);
    std::string last_text();

    Request request_;
    Sampler sampler_;
    std::unique_ptr<Detokenizer> detokenizer_;
    StopStrings stop_strings_;
};

} // namespace q2export::runtime
