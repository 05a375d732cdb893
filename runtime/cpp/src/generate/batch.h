// Sequences that share the engine's steps: those that decode lie in the first rows of one cache, new prompts behind them.
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "engine/core.h"
#include "generate/prefill.h"
#include "generate/sequence.h"

namespace q2export::runtime
{

// A sequence's tokens do not depend on what runs beside it: the backend gives a row the same bits whatever others come
// along. Not for two threads at once.
class Batch
{
public:
    // Throws GenerationError: more rows or capacity than the engine was built for, or no memory.
    Batch(std::shared_ptr<Core> core, size_t rows, size_t capacity);

    // How many sequences can be admitted now: none while prompts are being run.
    size_t room() const;

    // At most room() sequences, each of at most the batch's capacity.
    void admit(std::vector<std::shared_ptr<Sequence>> sequences);

    // Run one token of each sequence that decodes, then one piece of the new prompts. What goes wrong with one sequence
    // ends it with that error; what goes wrong with the engine is thrown, and nothing more can be done with the batch.
    void step();

    // Sequences that have not ended.
    size_t unfinished() const
    {
        return running_.size() + group_.size();
    }

    // End all that have not ended.
    void fail(std::exception_ptr const& error);

private:
    void prefill();
    void finish_prefill();
    void decode();
    void drop_cancelled();
    void drop_ended();

    // Choose a sequence's next token; false if it has ended.
    bool advance(Sequence& sequence, float* logits);
    void end(Sequence& sequence, std::exception_ptr const& error) const;

    // Seconds spent in steps.
    double now() const;

    std::shared_ptr<Core> core_;
    std::unique_ptr<Cache> cache_;
    size_t vocab_size_;
    std::vector<std::shared_ptr<Sequence>> running_; // by row
    std::vector<std::shared_ptr<Sequence>> group_;   // new ones, longest first, in rows from first_ on
    size_t first_ = 0;
    std::vector<PrefillCall> calls_;
    size_t next_call_ = 0;
    Step prefill_step_;
    Step decode_step_;
    std::chrono::steady_clock::time_point resumed_;
    double spent_ = 0;
};

// Rounded up so that there are few distinct shapes of caches.
size_t rounded_capacity(size_t tokens, EngineInfo const& engine);

} // namespace q2export::runtime
