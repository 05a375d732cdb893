#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>

#include "error.h"
#include "generate/exponential.h"

namespace q2export::runtime
{
namespace
{

constexpr size_t kFirstGuess = 256; // tokens sorted first when looking for the top_p set in a whole vocabulary

constexpr size_t kLanes = 16; // of which the compiler makes vectors

// The largest of some values.
float largest_of(float const* values, size_t size)
{
    float lanes[kLanes];
    std::fill(lanes, lanes + kLanes, -std::numeric_limits<float>::infinity());
    size_t i = 0;
    for (; i + kLanes <= size; i += kLanes)
    {
        for (size_t lane = 0; lane < kLanes; ++lane)
        {
            lanes[lane] = values[i + lane] > lanes[lane] ? values[i + lane] : lanes[lane];
        }
    }
    float const tail = i < size ? *std::max_element(values + i, values + size) : lanes[0];
    return std::max(tail, *std::max_element(lanes, lanes + kLanes));
}

// The place of the first of the largest values.
int64_t place_of_largest(float const* values, size_t size)
{
    return std::find(values, values + size, largest_of(values, size)) - values;
}

float nth_largest_of(std::vector<float>& values, size_t count)
{
    auto const place = values.begin() + static_cast<std::ptrdiff_t>(count) - 1;
    std::nth_element(values.begin(), place, values.end(), std::greater<>());
    return *place;
}

// The `count` th largest of some values. Of the largest values of blocks, the `count` th is a bound from below: few values
// reach it. scratch: kept for its memory.
float nth_largest(float const* values, size_t size, size_t count, std::vector<float>& scratch)
{
    constexpr size_t kBlock = 32;
    scratch.clear();
    for (size_t i = 0; i < size; i += kBlock)
    {
        scratch.push_back(largest_of(values + i, std::min(kBlock, size - i)));
    }
    float const bound = scratch.size() < count ? -std::numeric_limits<float>::infinity() : nth_largest_of(scratch, count);
    scratch.clear();
    for (size_t start = 0; start < size; start += kBlock)
    {
        size_t const end = std::min(size, start + kBlock);
        bool any = false;
        for (size_t i = start; i < end; ++i)
        {
            any |= values[i] >= bound;
        }
        for (size_t i = start; any && i < end; ++i)
        {
            if (values[i] >= bound)
            {
                scratch.push_back(values[i]);
            }
        }
    }
    return nth_largest_of(scratch, count);
}

} // namespace

bool all_finite(float const* logits, size_t vocab_size)
{
    constexpr uint32_t kExponent = 0x7f800000; // all ones: infinite, or not a number
    uint32_t found = 0;
    for (size_t i = 0; i < vocab_size; ++i)
    {
        uint32_t bits = 0;
        std::memcpy(&bits, logits + i, sizeof(bits));
        found |= static_cast<uint32_t>((bits & kExponent) == kExponent);
    }
    return found == 0;
}

GenerationError not_finite(float const* logits, size_t vocab_size, std::string const& where)
{
    auto const is_bad = [](float value) { return !std::isfinite(value); };
    auto const place = static_cast<size_t>(std::find_if(logits, logits + vocab_size, is_bad) - logits);
    auto const count = std::count_if(logits, logits + vocab_size, is_bad);
    return GenerationError("the engine returned " + std::to_string(logits[place]) + " as the logit of token "
        + std::to_string(place) + " " + where + " (" + std::to_string(count) + " of " + std::to_string(vocab_size)
        + " logits are not finite); compare the engine with its checkpoint: q2export verify");
}

TokenLogprobs token_logprobs(float const* logits, size_t vocab_size, int64_t token, size_t top)
{
    double const largest = largest_of(logits, vocab_size);
    double total = 0;
    for (size_t i = 0; i < vocab_size; ++i)
    {
        total += std::exp(logits[i] - largest);
    }
    double const log_total = std::log(total);
    auto const logprob = [&](int64_t id) { return (logits[id] - largest) - log_total; };
    TokenLogprobs result;
    result.logprob = logprob(token);
    std::vector<int64_t> ids(vocab_size);
    std::iota(ids.begin(), ids.end(), int64_t{0});
    size_t const count = std::min(top, vocab_size);
    std::partial_sort(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(count), ids.end(),
        [logits](int64_t a, int64_t b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); });
    for (size_t i = 0; i < count; ++i)
    {
        result.top.emplace_back(ids[i], logprob(ids[i]));
    }
    return result;
}

Sampler::Sampler(GenerationOptions const& options, std::vector<int64_t> const& prompt, std::optional<uint64_t> seed,
    std::vector<int64_t> forbidden_first)
    : options_(options)
    , forbidden_(std::move(forbidden_first))
    , minimum_(forbidden_.empty() ? 0 : options.min_new_tokens)
{
    if (options_.repetition_penalty != 1)
    {
        seen_.insert(prompt.begin(), prompt.end());
    }
    if (!options_.greedy())
    {
        random_.emplace(seed);
    }
}

int64_t Sampler::choose(float* logits, size_t vocab_size)
{
    penalize(logits, vocab_size);
    int64_t const token = random_ ? draw(logits, vocab_size) : place_of_largest(logits, vocab_size);
    ++chosen_;
    if (options_.repetition_penalty != 1)
    {
        seen_.insert(token);
    }
    if (options_.presence_penalty != 0 || options_.frequency_penalty != 0)
    {
        ++counts_[token];
    }
    return token;
}

void Sampler::penalize(float* logits, size_t vocab_size) const
{
    for (auto const& [token, bias] : options_.logit_bias)
    {
        logits[token] += static_cast<float>(bias);
    }
    auto const factor = static_cast<float>(options_.repetition_penalty);
    for (int64_t const token : seen_)
    {
        logits[token] = logits[token] < 0 ? logits[token] * factor : logits[token] / factor;
    }
    auto const presence = static_cast<float>(options_.presence_penalty);
    auto const frequency = static_cast<float>(options_.frequency_penalty);
    for (auto const& [token, count] : counts_)
    {
        logits[token] -= presence + static_cast<float>(count) * frequency;
    }
    bool const early = chosen_ < minimum_;
    for (size_t i = 0; early && i < forbidden_.size(); ++i)
    {
        logits[forbidden_[i]] = -std::numeric_limits<float>::infinity();
    }
    bool const changed = early || !options_.logit_bias.empty() || options_.repetition_penalty != 1 || !counts_.empty();
    if (changed && !std::isfinite(largest_of(logits, vocab_size)))
    {
        throw GenerationError("no token may come next: biases and penalties leave none"
            + std::string(early ? " that min_new_tokens allows" : ""));
    }
}

int64_t Sampler::draw(float const* logits, size_t vocab_size)
{
    keep_likeliest(logits, vocab_size);
    if (options_.top_p < 1)
    {
        keep_top_p();
    }
    if (options_.min_p > 0)
    {
        double const least = options_.min_p;
        auto const unlikely = [least](Candidate const& each) { return !(each.weight >= least); };
        candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(), unlikely), candidates_.end());
    }
    double total = 0;
    for (Candidate const& each : candidates_)
    {
        total += each.weight;
    }
    double const place = random_->next() * total;
    double sum = 0;
    for (Candidate const& each : candidates_)
    {
        sum += each.weight;
        if (sum > place)
        {
            return each.token;
        }
    }
    return candidates_.back().token;
}

// Into candidates_, by ascending token: the top_k largest logits and those that equal the smallest of them.
void Sampler::keep_likeliest(float const* logits, size_t vocab_size)
{
    auto const count = static_cast<size_t>(options_.top_k);
    bool const all = count == 0 || count >= vocab_size;
    float const smallest
        = all ? -std::numeric_limits<float>::infinity() : nth_largest(logits, vocab_size, count, scratch_);
    double const largest = largest_of(logits, vocab_size);
    candidates_.clear();
    for (size_t i = 0; i < vocab_size; ++i)
    {
        if (logits[i] >= smallest)
        {
            double const score = (static_cast<double>(logits[i]) - largest) / options_.temperature;
            candidates_.push_back({static_cast<int64_t>(i), exponential(score)});
        }
    }
}

// Keep the fewest largest weights that make up top_p of the sum, the largest first: one stays if the larger ones
// together are less than that.
void Sampler::keep_top_p()
{
    double total = 0;
    for (Candidate const& each : candidates_)
    {
        total += each.weight;
    }
    double const wanted = options_.top_p * total;
    auto const is_before = [](Candidate const& a, Candidate const& b) {
        return a.weight > b.weight || (a.weight == b.weight && a.token < b.token);
    };
    for (size_t count = kFirstGuess;; count *= 8) // most of a vocabulary has next to no weight: do not sort it
    {
        count = std::min(count, candidates_.size());
        auto const end = candidates_.begin() + static_cast<std::ptrdiff_t>(count);
        std::nth_element(candidates_.begin(), end, candidates_.end(), is_before);
        std::sort(candidates_.begin(), end, is_before);
        double before = 0;
        size_t kept = 0;
        while (kept < count && before < wanted)
        {
            before += candidates_[kept++].weight;
        }
        if (before >= wanted || count == candidates_.size())
        {
            candidates_.resize(kept);
            return;
        }
    }
}

} // namespace q2export::runtime
