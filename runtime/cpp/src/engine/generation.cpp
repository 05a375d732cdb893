#include "generation.h"

#include <algorithm>

#include "contract.h"
#include "error.h"
#include "generate/batch.h"

namespace q2export::runtime
{
namespace
{

constexpr size_t kScorePieceBytes = 64 << 20; // logits asked for at once

void check_tokens(TokenIds const& tokens, int64_t vocab_size, std::string const& name)
{
    if (tokens.empty())
    {
        throw GenerationError(name + " is empty: at least one token is needed to continue from");
    }
    for (size_t place = 0; place < tokens.size(); ++place)
    {
        if (tokens[place] < 0 || tokens[place] >= vocab_size)
        {
            throw GenerationError(name + ": token id " + std::to_string(tokens[place]) + " at position "
                + std::to_string(place) + " is outside the vocabulary of the engine, 0 to " + std::to_string(vocab_size - 1));
        }
    }
}

// Most tokens to generate after a prompt: what the caller asks, or as much of the default as fits.
size_t new_token_limit(GenerationOptions const& options, bool is_asked, size_t prompt, size_t capacity, std::string const& name)
{
    if (prompt >= capacity)
    {
        throw GenerationError(name + " has " + std::to_string(prompt) + " tokens, the engine's capacity is "
            + std::to_string(capacity) + " for prompt and new tokens together; shorten it to at most "
            + std::to_string(capacity - 1) + " tokens, or build an engine of larger capacity");
    }
    auto const room = static_cast<int64_t>(capacity - prompt);
    bool const needs_minimum = !is_asked && options.min_new_tokens > room;
    int64_t const wanted = needs_minimum ? options.min_new_tokens : options.max_new_tokens.value_or(kDefaultMaxNewTokens);
    if (!is_asked && !needs_minimum)
    {
        return static_cast<size_t>(std::min(std::max(wanted, options.min_new_tokens), room));
    }
    if (wanted > room)
    {
        throw GenerationError(name + " has " + std::to_string(prompt) + " tokens and "
            + (needs_minimum ? "min_new_tokens" : "max_new_tokens") + " asks for " + std::to_string(wanted)
            + " more; the engine's capacity is " + std::to_string(capacity) + ". Ask for at most " + std::to_string(room)
            + " new tokens, shorten the prompt, or build an engine of larger capacity");
    }
    return static_cast<size_t>(wanted);
}

void check_biases(GenerationOptions const& options, int64_t vocab_size)
{
    for (auto const& [token, bias] : options.logit_bias)
    {
        static_cast<void>(bias);
        if (token >= vocab_size)
        {
            throw GenerationError("logit_bias: token id " + std::to_string(token)
                + " is outside the vocabulary of the engine, 0 to " + std::to_string(vocab_size - 1));
        }
    }
}

// Tokens that end the text, and the other stop strings.
void find_stops(Core const& core, GenerationOptions const& options, Request& request)
{
    if (!options.ignore_eos)
    {
        for (int64_t const id : core.defaults().eos_token_ids)
        {
            request.stop_ids.emplace(id, std::nullopt);
        }
    }
    for (std::string const& stop : options.stop)
    {
        if (core.tokenizer() == nullptr)
        {
            throw GenerationError("stop strings need a tokenizer, and " + core.name() + " has none here");
        }
        auto const id = core.tokenizer()->special_token_id(stop);
        if (id)
        {
            request.stop_ids[*id] = stop;
        }
        else
        {
            request.stop_strings.push_back(stop);
        }
    }
}

} // namespace

std::vector<Request> make_requests(
    Core const& core, std::vector<TokenIds> prompts, GivenOptions const& given, size_t capacity)
{
    EngineInfo const& engine = core.engine();
    if (prompts.empty() || prompts.size() > static_cast<size_t>(engine.max_batch))
    {
        throw GenerationError("this engine takes a batch of 1 to " + std::to_string(engine.max_batch)
            + " prompts, found " + std::to_string(prompts.size()) + "; split the batch");
    }
    GenerationOptions const options = given.over(core.defaults().options);
    check_biases(options, engine.vocab_size);
    auto const seeds = seeds_of(options, prompts.size());
    std::vector<Request> requests;
    for (size_t index = 0; index < prompts.size(); ++index)
    {
        std::string const name = prompts.size() == 1 ? "the prompt" : "prompt " + std::to_string(index);
        check_tokens(prompts[index], engine.vocab_size, name);
        Request request;
        request.index = index;
        request.options = options;
        request.seed = seeds[index];
        request.max_new_tokens
            = new_token_limit(options, given.has("max_new_tokens"), prompts[index].size(), capacity, name);
        request.prompt = std::move(prompts[index]);
        request.tokenizer = core.tokenizer();
        find_stops(core, options, request);
        requests.push_back(std::move(request));
    }
    return requests;
}

std::vector<std::shared_ptr<Sequence>> generate(
    std::shared_ptr<Core> const& core, std::vector<TokenIds> prompts, GivenOptions const& given, Callback const& callback)
{
    std::vector<std::shared_ptr<Sequence>> sequences;
    size_t longest = 0;
    auto const capacity = static_cast<size_t>(core->engine().max_capacity);
    for (Request& request : make_requests(*core, std::move(prompts), given, capacity))
    {
        sequences.push_back(std::make_shared<Sequence>(std::move(request)));
        longest = std::max(longest, sequences.back()->longest());
    }
    bool cancelled = false;
    for (auto const& each : sequences)
    {
        each->on_event = [&callback, &cancelled](Sequence& sequence, Event const& event) {
            cancelled = cancelled || (callback && !callback(sequence.index(), event));
        };
    }
    Batch batch(core, sequences.size(), rounded_capacity(longest, core->engine()));
    batch.admit(sequences);
    while (batch.unfinished() > 0 && !cancelled)
    {
        batch.step();
    }
    if (cancelled)
    {
        throw Error(Q2E_CANCELLED, "the generation was cancelled");
    }
    for (auto const& each : sequences)
    {
        if (each->error)
        {
            std::rethrow_exception(each->error);
        }
    }
    return sequences;
}

void score(Core& core, TokenIds const& tokens, float* logits)
{
    EngineInfo const& engine = core.engine();
    check_tokens(tokens, engine.vocab_size, "the sequence");
    auto const vocab_size = static_cast<size_t>(engine.vocab_size);
    if (tokens.size() > static_cast<size_t>(engine.max_capacity))
    {
        throw GenerationError("the sequence has " + std::to_string(tokens.size()) + " tokens, the engine's capacity is "
            + std::to_string(engine.max_capacity) + "; shorten it, score it in parts, or build an engine of larger capacity");
    }
    size_t const affordable = std::max<size_t>(1, kScorePieceBytes / (sizeof(float) * vocab_size));
    size_t const width = std::min(static_cast<size_t>(engine.prefill_chunk), affordable);
    std::unique_ptr<Cache> cache;
    Step step;
    for (size_t start = 0; start < tokens.size(); start += width)
    {
        size_t const count = std::min(width, tokens.size() - start);
        step.shape(0, 1, count, count, vocab_size);
        std::copy_n(tokens.begin() + static_cast<std::ptrdiff_t>(start), count, step.input_ids.begin());
        step.past_lengths[0] = static_cast<int64_t>(start);
        step.query_lengths[0] = static_cast<int64_t>(count);
        for (size_t i = 0; i < count; ++i)
        {
            step.logits_indices[i] = static_cast<int64_t>(i);
        }
        Core::Computing const computing(core);
        if (cache == nullptr)
        {
            cache = computing.backend().new_cache(1, tokens.size());
        }
        computing.backend().forward(*cache, step);
        for (size_t i = 0; i < count; ++i)
        {
            if (!all_finite(step.logits.data() + i * vocab_size, vocab_size))
            {
                throw not_finite(step.logits.data() + i * vocab_size, vocab_size, "after token " + std::to_string(start + i));
            }
        }
        std::copy(step.logits.begin(), step.logits.end(), logits + start * vocab_size);
    }
}

} // namespace q2export::runtime
