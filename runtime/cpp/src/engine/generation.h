// What callers ask of an engine: requests checked in full before anything is computed, batches, scores.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "engine/core.h"
#include "generate/options.h"
#include "generate/sequence.h"

namespace q2export::runtime
{

using TokenIds = std::vector<int64_t>;

// One request per prompt. capacity: most tokens of one sequence. Throws GenerationError as Engine.generate in Python.
std::vector<Request> make_requests(
    Core const& core, std::vector<TokenIds> prompts, GivenOptions const& given, size_t capacity);

using Callback = std::function<bool(size_t prompt, Event const& event)>; // false cancels the generation

// Continue prompts, all at once; one ended sequence each, in their order. Throws Error.
std::vector<std::shared_ptr<Sequence>> generate(
    std::shared_ptr<Core> const& core, std::vector<TokenIds> prompts, GivenOptions const& given, Callback const& callback);

// Logits after each token: float32 [tokens, vocab_size]. Throws Error.
void score(Core& core, TokenIds const& tokens, float* logits);

} // namespace q2export::runtime
