// Choosing the next token from its logits: the arithmetic of runtime/sampling.py, operation by operation, so that a seed
// gives the same tokens in both languages.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <unordered_set>
#include <utility>
#include <vector>

#include "error.h"
#include "generate/options.h"
#include "generate/random.h"

namespace q2export::runtime
{

// Whether no logit of [vocab_size] is NaN or infinite; the error that says which one is.
bool all_finite(float const* logits, size_t vocab_size);
GenerationError not_finite(float const* logits, size_t vocab_size, std::string const& where);

// The log probability of a token, and of the likeliest ones in its place.
struct TokenLogprobs
{
    double logprob = 0;
    std::vector<std::pair<int64_t, double>> top; // the likeliest first
};

// The log-softmax of logits [vocab_size] at a token and at the `top` largest.
TokenLogprobs token_logprobs(float const* logits, size_t vocab_size, int64_t token, size_t top);

// Chooses the tokens of one sequence, remembering what penalties and the random draws need.
class Sampler
{
public:
    // prompt: token ids. seed: of this sequence's own random numbers; without one, entropy of the system.
    // forbidden_first: tokens that must not come among the first `min_new_tokens` ones.
    Sampler(GenerationOptions const& options, std::vector<int64_t> const& prompt, std::optional<uint64_t> seed,
        std::vector<int64_t> forbidden_first);

    // The next token. Logits [vocab_size] must be finite; they are changed. Throws GenerationError where penalties and
    // biases leave no token.
    int64_t choose(float* logits, size_t vocab_size);

private:
    void penalize(float* logits, size_t vocab_size) const;
    int64_t draw(float const* logits, size_t vocab_size);
    void keep_likeliest(float const* logits, size_t vocab_size);
    void keep_top_p();

    // A token that may be drawn; its weight is a probability up to a common factor.
    struct Candidate
    {
        int64_t token;
        double weight;
    };

    GenerationOptions options_;
    std::unordered_set<int64_t> seen_;
    std::map<int64_t, int64_t> counts_; // of generated tokens
    std::optional<Random> random_;      // where tokens are drawn
    std::vector<int64_t> forbidden_;
    int64_t minimum_;
    int64_t chosen_ = 0;
    std::vector<Candidate> candidates_; // kept for their memory
    std::vector<float> scratch_;
};

} // namespace q2export::runtime
