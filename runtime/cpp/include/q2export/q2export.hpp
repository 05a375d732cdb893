// Engines of q2export packages in C++17: objects that release themselves and exceptions, over the C ABI of q2export.h,
// which says what may be called when. Headers alone: the standard library's types never cross into libq2export.
#pragma once

#include <cmath>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "q2export/detail.hpp"
#include "q2export/generation_options.hpp"
#include "q2export/q2export.h"

namespace q2export
{

/// One token as it comes.
struct Event
{
    size_t prompt = 0; ///< index within the batch
    int64_t token_id = 0;
    q2e_finish_reason finish_reason = Q2E_FINISH_NONE;
    std::string text; ///< what can now be shown
    double logprob = NAN;

    explicit Event(q2e_event const& event)
        : prompt(event.prompt)
        , token_id(event.token_id)
        , finish_reason(event.finish_reason)
        , text(event.text, event.text_bytes)
        , logprob(event.logprob)
    {
    }
};

/// One generated sequence.
struct Result
{
    std::vector<int64_t> token_ids;
    q2e_finish_reason finish_reason = Q2E_FINISH_NONE;
    std::optional<std::string> text; ///< none without a tokenizer
    std::optional<std::string> stop_string;
    size_t prompt_tokens = 0;
    double prefill_seconds = 0;
    double time_to_first_token = 0;
    double decode_seconds = 0;
    std::vector<double> logprobs; ///< empty unless asked for

    explicit Result(q2e_result const& result)
        : token_ids(result.token_ids, result.token_ids + result.token_count)
        , finish_reason(result.finish_reason)
        , prompt_tokens(result.prompt_tokens)
        , prefill_seconds(result.prefill_seconds)
        , time_to_first_token(result.time_to_first_token)
        , decode_seconds(result.decode_seconds)
    {
        if (result.text != nullptr)
        {
            text.emplace(result.text, result.text_bytes);
        }
        if (result.stop_string != nullptr)
        {
            stop_string = result.stop_string;
        }
        if (result.logprobs != nullptr)
        {
            logprobs.assign(result.logprobs, result.logprobs + result.token_count);
        }
    }
};

/// The tokens of one text, pulled as they come.
class Stream
{
public:
    explicit Stream(q2e_stream* handle)
        : handle_(handle, &q2e_stream_release)
    {
    }

    /// The next token; none after the last one, or where none came in time (then is_over() is false).
    std::optional<Event> next(int64_t timeout_ms = Q2E_FOREVER)
    {
        q2e_event event{};
        event.size = sizeof(event);
        q2e_error* error = nullptr;
        q2e_status const status = q2e_stream_next(handle_.get(), timeout_ms, &event, &error);
        detail::check(status, error);
        is_over_ = status == Q2E_END;
        return status == Q2E_OK ? std::make_optional<Event>(event) : std::nullopt;
    }

    bool is_over() const
    {
        return is_over_;
    }

    /// The whole result, once it is over.
    Result result() const
    {
        q2e_result result{};
        result.size = sizeof(result);
        q2e_error* error = nullptr;
        q2e_status const status = q2e_stream_get_result(handle_.get(), &result, &error);
        detail::check(status, error);
        return Result(result);
    }

    /// End the generation, from any thread.
    void cancel() const
    {
        q2e_stream_cancel(handle_.get());
    }

private:
    detail::Handle<q2e_stream> handle_;
    bool is_over_ = false;
};

/// A loaded engine package; several threads may use it at once.
class Engine
{
public:
    struct OpenOptions
    {
        q2e_check check = Q2E_CHECK_FAST;
        int threads = Q2E_THREADS_OF_PROFILE;
        std::string onnxruntime_library; ///< empty: looked for
        std::string ops_library;         ///< empty: looked for
    };

    explicit Engine(std::string const& package, OpenOptions const& options)
        : handle_(open(package, options), &q2e_engine_release)
    {
    }

    explicit Engine(std::string const& package)
        : Engine(package, OpenOptions())
    {
    }

    q2e_engine_info info() const
    {
        q2e_engine_info info{};
        info.size = sizeof(info);
        q2e_error* error = nullptr;
        q2e_status const status = q2e_engine_get_info(handle_.get(), &info, &error);
        detail::check(status, error);
        return info;
    }

    std::string warnings() const
    {
        return q2e_engine_warnings(handle_.get());
    }

    /// Continue a prompt.
    Result generate(std::vector<int64_t> const& prompt, GenerationOptions const& options = {}) const
    {
        return std::move(generate_batch({prompt}, options)[0]);
    }

    /// Continue several prompts at once; on_event, which may be empty, says whether to go on.
    std::vector<Result> generate_batch(std::vector<std::vector<int64_t>> const& prompts,
        GenerationOptions const& options = {}, std::function<bool(Event const&)> on_event = nullptr) const
    {
        std::vector<q2e_prompt> made;
        for (auto const& each : prompts)
        {
            made.push_back(detail::prompt_of(each));
        }
        detail::OptionsHandle const given(options);
        Calling calling{std::move(on_event), nullptr};
        q2e_results* results = nullptr;
        q2e_error* error = nullptr;
        q2e_event_callback const callback = calling.on_event ? &Calling::call : nullptr;
        q2e_status const status = q2e_generate(
            handle_.get(), made.data(), made.size(), given.get(), callback, &calling, &results, &error);
        detail::Handle<q2e_results> const held(results, &q2e_results_release);
        if (calling.thrown)
        {
            q2e_error_release(error);
            std::rethrow_exception(calling.thrown);
        }
        detail::check(status, error);
        std::vector<Result> found;
        for (size_t index = 0; index < q2e_results_count(results); ++index)
        {
            q2e_result result{};
            result.size = sizeof(result);
            detail::check(q2e_results_get(results, index, &result, nullptr), nullptr);
            found.emplace_back(result);
        }
        return found;
    }

    Stream stream(std::vector<int64_t> const& prompt, GenerationOptions const& options = {}) const
    {
        detail::OptionsHandle const given(options);
        q2e_prompt const made = detail::prompt_of(prompt);
        q2e_stream* stream = nullptr;
        q2e_error* error = nullptr;
        q2e_status const status = q2e_stream_open(handle_.get(), &made, given.get(), &stream, &error);
        detail::check(status, error);
        return Stream(stream);
    }

    /// Logits after each token: [tokens, vocab_size], row after row.
    std::vector<float> score(std::vector<int64_t> const& token_ids) const
    {
        std::vector<float> logits(token_ids.size() * static_cast<size_t>(info().vocab_size));
        q2e_error* error = nullptr;
        q2e_status const status
            = q2e_score(handle_.get(), token_ids.data(), token_ids.size(), logits.data(), &error);
        detail::check(status, error);
        return logits;
    }

    /// Free the engine: what other threads do with it ends with an Error.
    void close() const
    {
        q2e_engine_close(handle_.get());
    }

    q2e_engine* handle() const
    {
        return handle_.get();
    }

private:
    // A callback, and what it threw: exceptions do not pass through C.
    struct Calling
    {
        std::function<bool(Event const&)> on_event;
        std::exception_ptr thrown;

        static int call(q2e_event const* event, void* user)
        {
            auto* const self = static_cast<Calling*>(user);
            try
            {
                return self->on_event(Event(*event)) ? 0 : 1;
            }
            catch (...)
            {
                self->thrown = std::current_exception();
                return 1;
            }
        }
    };

    static q2e_engine* open(std::string const& package, OpenOptions const& options)
    {
        auto const text = [](std::string const& value) { return value.empty() ? nullptr : value.c_str(); };
        q2e_open_options given{};
        given.size = sizeof(given);
        given.check = options.check;
        given.threads = options.threads;
        given.onnxruntime_library = text(options.onnxruntime_library);
        given.ops_library = text(options.ops_library);
        q2e_engine* engine = nullptr;
        q2e_error* error = nullptr;
        q2e_status const status = q2e_engine_open(package.c_str(), &given, &engine, &error);
        detail::check(status, error);
        return engine;
    }

    detail::Handle<q2e_engine> handle_;
};

/// Requests that come and go share the engine's steps; one thread calls step() in a loop.
class Scheduler
{
public:
    explicit Scheduler(Engine const& engine, size_t rows = 0, size_t capacity = 0, size_t max_waiting = 0)
        : handle_(open(engine, {sizeof(q2e_scheduler_options), rows, capacity, max_waiting}), &q2e_scheduler_release)
    {
    }

    Stream submit(std::vector<int64_t> const& prompt, GenerationOptions const& options = {}) const
    {
        detail::OptionsHandle const given(options);
        q2e_prompt const made = detail::prompt_of(prompt);
        q2e_stream* stream = nullptr;
        q2e_error* error = nullptr;
        q2e_status const status = q2e_scheduler_submit(handle_.get(), &made, given.get(), &stream, &error);
        detail::check(status, error);
        return Stream(stream);
    }

    /// Compute one step; how many requests are unfinished, none where there was nothing to do in that time.
    std::optional<size_t> step(int64_t timeout_ms = Q2E_FOREVER) const
    {
        size_t unfinished = 0;
        q2e_error* error = nullptr;
        q2e_status const status = q2e_scheduler_step(handle_.get(), timeout_ms, &unfinished, &error);
        detail::check(status, error);
        return status == Q2E_OK ? std::make_optional(unfinished) : std::nullopt;
    }

    /// End all requests, and step() with an Error of Q2E_CLOSED_ERROR.
    void close() const
    {
        q2e_scheduler_close(handle_.get());
    }

private:
    static q2e_scheduler* open(Engine const& engine, q2e_scheduler_options const& options)
    {
        q2e_scheduler* scheduler = nullptr;
        q2e_error* error = nullptr;
        q2e_status const status = q2e_scheduler_open(engine.handle(), &options, &scheduler, &error);
        detail::check(status, error);
        return scheduler;
    }

    detail::Handle<q2e_scheduler> handle_;
};

} // namespace q2export
