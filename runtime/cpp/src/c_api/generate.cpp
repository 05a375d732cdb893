#include "c_api/handles.h"

using namespace q2export::runtime;

namespace
{

Callback callback_of(q2e_event_callback callback, void* user)
{
    if (callback == nullptr)
    {
        return nullptr;
    }
    return [callback, user](size_t prompt, Event const& event) {
        std::vector<int64_t> top_token_ids;
        std::vector<double> top_logprobs;
        q2e_event out{};
        out.size = sizeof(out);
        fill_event(&out, prompt, event, top_token_ids, top_logprobs);
        return callback(&out, user) == 0;
    };
}

} // namespace

q2e_status q2e_generate(q2e_engine* engine, q2e_prompt const* prompts, size_t count, q2e_options const* options,
    q2e_event_callback callback, void* user, q2e_results** results, q2e_error** error)
{
    return guarded(error, [&] {
        require(engine, "engine");
        if (count > 0)
        {
            check_size(prompts);
        }
        require(results, "results");
        std::vector<TokenIds> all;
        for (size_t i = 0; i < count; ++i)
        {
            // As far apart as they are in the caller's version.
            char const* const address = reinterpret_cast<char const*>(prompts) + i * prompts->size;
            all.push_back(token_ids_of(reinterpret_cast<q2e_prompt const*>(address)));
        }
        auto made = std::make_unique<q2e_results>();
        for (auto& each : generate(engine->core, std::move(all), given_options(options), callback_of(callback, user)))
        {
            made->results.emplace_back(std::move(each));
        }
        *results = made.release();
        return Q2E_OK;
    });
}

size_t q2e_results_count(q2e_results const* results)
{
    return results == nullptr ? 0 : results->results.size();
}

q2e_status q2e_results_get(q2e_results const* results, size_t index, q2e_result* result, q2e_error** error)
{
    return guarded(error, [&] {
        require(results, "results");
        check_size(result);
        if (index >= results->results.size())
        {
            throw Error(Q2E_ARGUMENT_ERROR, "index must be below " + std::to_string(results->results.size()) + ", found "
                + std::to_string(index));
        }
        results->results[index].fill(result);
        return Q2E_OK;
    });
}

void q2e_results_release(q2e_results* results)
{
    delete results;
}

q2e_status q2e_stream_open(q2e_engine* engine, q2e_prompt const* prompt, q2e_options const* options,
    q2e_stream** stream, q2e_error** error)
{
    return guarded(error, [&] {
        require(engine, "engine");
        require(stream, "stream");
        std::vector<TokenIds> prompts{token_ids_of(prompt)};
        auto const capacity = static_cast<size_t>(engine->core->engine().max_capacity);
        std::vector<Request> requests
            = make_requests(*engine->core, std::move(prompts), given_options(options), capacity);
        auto made = std::make_unique<q2e_stream>();
        made->core = engine->core;
        made->stream
            = std::make_shared<DirectStream>(engine->core, std::make_shared<Sequence>(std::move(requests[0])));
        *stream = made.release();
        return Q2E_OK;
    });
}

q2e_status q2e_stream_next(q2e_stream* stream, int64_t timeout_ms, q2e_event* event, q2e_error** error)
{
    return guarded(error, [&] {
        require(stream, "stream");
        check_size(event);
        switch (stream->stream->next(std::chrono::milliseconds(timeout_ms), stream->event))
        {
        case Next::kEvent:
            fill_event(event, 0, stream->event, stream->top_token_ids, stream->top_logprobs);
            return Q2E_OK;
        case Next::kEnd: return Q2E_END;
        case Next::kTimeout: return Q2E_TIMEOUT;
        case Next::kCancelled: break;
        }
        throw Error(Q2E_CANCELLED, "the generation was cancelled");
    });
}

q2e_status q2e_stream_get_result(q2e_stream* stream, q2e_result* result, q2e_error** error)
{
    return guarded(error, [&] {
        require(stream, "stream");
        check_size(result);
        if (stream->stream->ended() == nullptr)
        {
            throw Error(Q2E_ARGUMENT_ERROR, "the stream has not ended; pull it to its end first");
        }
        if (stream->result == nullptr)
        {
            stream->result = std::make_unique<StoredResult>(stream->stream->shared_sequence());
        }
        stream->result->fill(result);
        return Q2E_OK;
    });
}

void q2e_stream_cancel(q2e_stream* stream)
{
    if (stream != nullptr && !stream->core->is_forked())
    {
        stream->stream->cancel();
    }
}

void q2e_stream_release(q2e_stream* stream)
{
    if (stream != nullptr && !stream->core->is_forked())
    {
        stream->stream->cancel();
        delete stream;
    }
}
