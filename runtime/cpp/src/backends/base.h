// What a backend owes the generation loop: a KV cache and one forward step, as in runtime/backends/base.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "package/manifest.h"

namespace q2export::runtime
{

// Memory for the keys and values of `rows` sequences of at most `capacity` tokens each.
class Cache
{
public:
    virtual ~Cache() = default;

    virtual size_t rows() const = 0;
    virtual size_t capacity() const = 0;

    // Copy the first `length` tokens of row `source` over row `target`; `source` is then unused.
    virtual void move_row(size_t source, size_t target, size_t length) = 0;
};

// One step over `rows` rows of a cache from `first` on: the tokens of each are appended to what it holds. Kept and
// filled again by its owner, so that its memory stays where it is.
struct Step
{
    size_t first = 0;
    size_t rows = 0;
    size_t sequence = 0;                 // new tokens per row, padding included
    size_t wanted = 0;                   // positions per row whose logits are wanted
    std::vector<int64_t> input_ids;      // [rows, sequence], right-padded with any valid id
    std::vector<int64_t> past_lengths;   // [rows] tokens already cached
    std::vector<int64_t> query_lengths;  // [rows] valid tokens of input_ids, 1 to sequence
    std::vector<int64_t> logits_indices; // [rows, wanted] positions within the sequence
    std::vector<float> logits;           // [rows, wanted, vocab_size], written by the backend

    // Size the arrays; tokens and indices are 0.
    void shape(size_t first_row, size_t row_count, size_t sequence_length, size_t wanted_count, size_t vocab_size);
};

// One loaded engine. Several threads may run steps over caches of their own at once.
class Backend
{
public:
    virtual ~Backend() = default;

    virtual EngineInfo const& engine() const = 0;

    // An empty cache. Throws GenerationError beyond what the engine was built for, or without memory.
    virtual std::unique_ptr<Cache> new_cache(size_t rows, size_t capacity) = 0;

    // Run a step. Throws GenerationError, before anything is changed, if a row would exceed the cache's capacity.
    virtual void forward(Cache& cache, Step& step) = 0;
};

// Refuse a size of a cache that the engine was not built for. Throws GenerationError.
void check_cache_size(EngineInfo const& engine, size_t rows, size_t capacity);

// Refuse a step beyond the cache's capacity. Throws GenerationError.
void check_step(Cache const& cache, Step const& step);

} // namespace q2export::runtime
