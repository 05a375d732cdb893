// What lies behind the handles of q2export.h.
#pragma once

#include <memory>
#include <new>
#include <string>
#include <vector>

#include "c_api/structures.h"
#include "engine/core.h"
#include "engine/generation.h"
#include "engine/scheduler.h"
#include "engine/stream.h"
#include "error.h"

struct q2e_error
{
    q2e_status status;
    std::string message;
};

struct q2e_options
{
    q2export::runtime::GivenOptions given;
};

struct q2e_engine
{
    std::shared_ptr<q2export::runtime::Core> core;
};

// A result whose arrays a caller may point into.
struct StoredResult
{
    std::shared_ptr<q2export::runtime::Sequence> sequence;
    std::vector<double> logprobs;
    std::vector<int64_t> top_token_ids;
    std::vector<double> top_logprobs;

    explicit StoredResult(std::shared_ptr<q2export::runtime::Sequence> ended);
    void fill(q2e_result* result) const;
};

struct q2e_results
{
    std::vector<StoredResult> results;
};

struct q2e_stream
{
    std::shared_ptr<q2export::runtime::Core> core;
    std::shared_ptr<q2export::runtime::Stream> stream;
    q2export::runtime::Event event; // pulled last: its text is pointed to
    std::vector<int64_t> top_token_ids;
    std::vector<double> top_logprobs;
    std::unique_ptr<StoredResult> result;
};

struct q2e_scheduler
{
    std::shared_ptr<q2export::runtime::Core> core;
    std::unique_ptr<q2export::runtime::Scheduler> scheduler;
};

namespace q2export::runtime
{

// Put a message into its place, if there is one.
q2e_status report(q2e_status status, char const* message, q2e_error** error) noexcept;

// Run a function that returns a status; whatever it throws becomes a status and a message.
template <typename Function>
q2e_status guarded(q2e_error** error, Function const& function) noexcept
{
    if (error != nullptr)
    {
        *error = nullptr;
    }
    try
    {
        return function();
    }
    catch (Error const& problem)
    {
        return report(problem.status(), problem.what(), error);
    }
    catch (std::bad_alloc const&)
    {
        return report(Q2E_MEMORY_ERROR, "out of memory", error);
    }
    catch (std::exception const& problem)
    {
        return report(Q2E_INTERNAL_ERROR, problem.what(), error);
    }
    catch (...)
    {
        return report(Q2E_INTERNAL_ERROR, "an unknown exception", error);
    }
}

// Refuse a null pointer. Throws Error.
void require(void const* pointer, char const* name);

// Options as given, or none.
GivenOptions const& given_options(q2e_options const* options);

std::vector<int64_t> token_ids_of(q2e_prompt const* prompt);

// An event as the C ABI has it; what it points to lives as long as its arguments.
void fill_event(q2e_event* out, size_t prompt, Event const& event, std::vector<int64_t>& top_token_ids,
    std::vector<double>& top_logprobs);

} // namespace q2export::runtime
