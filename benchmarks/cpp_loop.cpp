// What the generation loop of libq2export costs beside the engine: steps of the loop by turns with the same steps without
// it, in processor time of the thread, which other programs do not disturb.
//
//   cpp_loop PACKAGE TOKENS REPEATS   prints microseconds per token, the least of all repeats: greedy, sampled, engine
#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <iostream>

#include "engine/core.h"
#include "engine/generation.h"
#include "generate/batch.h"

using namespace q2export::runtime;

namespace
{

double seconds()
{
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

constexpr int64_t kPrompt[] = {395, 86, 77, 82};

// Seconds of all steps after the first token, and the tokens.
double run_loop(std::shared_ptr<Core> const& core, GivenOptions const& options, TokenIds& tokens)
{
    auto const capacity = static_cast<size_t>(core->engine().max_capacity);
    TokenIds const prompt(std::begin(kPrompt), std::end(kPrompt));
    auto const sequence = std::make_shared<Sequence>(std::move(make_requests(*core, {prompt}, options, capacity)[0]));
    Batch batch(core, 1, rounded_capacity(sequence->longest(), core->engine()));
    batch.admit({sequence});
    batch.step();
    double const start = seconds();
    while (batch.unfinished() > 0)
    {
        batch.step();
    }
    double const spent = seconds() - start;
    tokens = sequence->token_ids;
    return spent;
}

// Seconds of the same steps, without the loop.
double run_engine(Core& core, TokenIds const& tokens)
{
    Core::Computing const computing(core);
    auto const cache = computing.backend().new_cache(1, std::size(kPrompt) + tokens.size());
    Step step;
    double const start = seconds();
    for (size_t i = 0; i + 1 < tokens.size(); ++i)
    {
        step.shape(0, 1, 1, 1, static_cast<size_t>(core.engine().vocab_size));
        step.input_ids[0] = tokens[i];
        step.past_lengths[0] = static_cast<int64_t>(std::size(kPrompt) + i);
        step.query_lengths[0] = 1;
        computing.backend().forward(*cache, step);
    }
    return seconds() - start;
}

} // namespace

int main(int count, char** words)
{
    if (count != 4)
    {
        return 2;
    }
    Core::OpenOptions one;
    one.threads = 1;
    auto const core = std::make_shared<Core>(words[1], one);
    auto const count_of_tokens = static_cast<int64_t>(std::atoll(words[2]));
    GivenOptions greedy;
    greedy.set("max_new_tokens", count_of_tokens);
    greedy.set("ignore_eos", true);
    GivenOptions sampled = greedy;
    greedy.set("do_sample", false);
    sampled.set("temperature", 0.9);
    sampled.set("seed", int64_t{1});
    double best[3] = {1e9, 1e9, 1e9};
    TokenIds tokens;
    for (int repeat = std::atoi(words[3]); repeat > 0; --repeat)
    {
        best[1] = std::min(best[1], run_loop(core, sampled, tokens));
        best[0] = std::min(best[0], run_loop(core, greedy, tokens));
        best[2] = std::min(best[2], run_engine(*core, tokens));
    }
    for (double const each : best)
    {
        std::cout << each * 1e6 / static_cast<double>(count_of_tokens - 1) << ' ';
    }
    std::cout << '\n';
}
