#include "c_api/handles.h"

using namespace q2export::runtime;

q2e_status q2e_scheduler_open(
    q2e_engine* engine, q2e_scheduler_options const* options, q2e_scheduler** scheduler, q2e_error** error)
{
    return guarded(error, [&] {
        require(engine, "engine");
        require(scheduler, "scheduler");
        SchedulerOptions given;
        if (options != nullptr)
        {
            q2e_scheduler_options const asked = copy_in(options);
            given = {asked.rows, asked.capacity, asked.max_waiting};
        }
        *scheduler = new q2e_scheduler{engine->core, std::make_unique<Scheduler>(engine->core, given)};
        return Q2E_OK;
    });
}

q2e_status q2e_scheduler_submit(q2e_scheduler* scheduler, q2e_prompt const* prompt, q2e_options const* options,
    q2e_stream** stream, q2e_error** error)
{
    return guarded(error, [&] {
        require(scheduler, "scheduler");
        require(stream, "stream");
        auto made = std::make_unique<q2e_stream>();
        made->core = scheduler->core;
        made->stream = scheduler->scheduler->submit(token_ids_of(prompt), given_options(options));
        *stream = made.release();
        return Q2E_OK;
    });
}

q2e_status q2e_scheduler_step(q2e_scheduler* scheduler, int64_t timeout_ms, size_t* unfinished, q2e_error** error)
{
    return guarded(error, [&] {
        require(scheduler, "scheduler");
        bool const stepped = scheduler->scheduler->step(std::chrono::milliseconds(timeout_ms));
        if (unfinished != nullptr)
        {
            *unfinished = scheduler->scheduler->unfinished();
        }
        return stepped ? Q2E_OK : Q2E_TIMEOUT;
    });
}

void q2e_scheduler_close(q2e_scheduler* scheduler)
{
    if (scheduler != nullptr && !scheduler->core->is_forked())
    {
        guarded(nullptr, [&] {
            scheduler->scheduler->close();
            return Q2E_OK;
        });
    }
}

void q2e_scheduler_release(q2e_scheduler* scheduler)
{
    if (scheduler != nullptr && !scheduler->core->is_forked())
    {
        q2e_scheduler_close(scheduler);
        delete scheduler;
    }
}
