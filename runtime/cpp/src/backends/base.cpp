#include "backends/base.h"

#include <string>

#include "error.h"

namespace q2export::runtime
{

void Step::shape(size_t first_row, size_t row_count, size_t sequence_length, size_t wanted_count, size_t vocab_size)
{
    first = first_row;
    rows = row_count;
    sequence = sequence_length;
    wanted = wanted_count;
    input_ids.assign(rows * sequence, 0);
    past_lengths.resize(rows);
    query_lengths.resize(rows);
    logits_indices.assign(rows * wanted, 0);
    logits.resize(rows * wanted * vocab_size);
}

void check_cache_size(EngineInfo const& engine, size_t rows, size_t capacity)
{
    auto const check = [](char const* what, size_t value, int64_t limit, char const* key, char const* or_else) {
        if (value < 1 || value > static_cast<size_t>(limit))
        {
            throw GenerationError(std::string(what) + " is out of range: the engine was built for 1 to "
                + std::to_string(limit) + "; rebuild with " + key + "=" + std::to_string(value) + " or " + or_else);
        }
    };
    check(("batch " + std::to_string(rows)).c_str(), rows, engine.max_batch, "batch.max", "split the batch");
    check(("capacity of " + std::to_string(capacity) + " tokens").c_str(), capacity, engine.max_capacity, "capacity.max",
        "shorten the request");
}

void check_step(Cache const& cache, Step const& step)
{
    for (size_t row = 0; row < step.rows; ++row)
    {
        auto const past = static_cast<size_t>(step.past_lengths[row]);
        auto const query = static_cast<size_t>(step.query_lengths[row]);
        if (past + query > cache.capacity())
        {
            throw GenerationError("row " + std::to_string(step.first + row) + ": " + std::to_string(past)
                + " tokens cached and " + std::to_string(query) + " more exceed the cache's capacity of "
                + std::to_string(cache.capacity()));
        }
    }
}

} // namespace q2export::runtime
