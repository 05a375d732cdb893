#include "scheduler.h"

#include <algorithm>

#include "engine/generation.h"
#include "error.h"

namespace q2export::runtime
{
namespace
{

constexpr size_t kMaxWaiting = 1024;

Error closed_error()
{
    return Error(Q2E_CLOSED_ERROR, "the scheduler is closed");
}

} // namespace

Scheduler::Scheduler(std::shared_ptr<Core> core, SchedulerOptions const& options)
    : core_(std::move(core))
    , rows_(options.rows != 0 ? options.rows : static_cast<size_t>(core_->engine().max_batch))
    , capacity_(options.capacity != 0 ? options.capacity : static_cast<size_t>(core_->engine().max_capacity))
    , max_waiting_(options.max_waiting != 0 ? options.max_waiting : kMaxWaiting)
    , batch_(std::make_unique<Batch>(core_, rows_, capacity_))
{
}

Scheduler::~Scheduler()
{
    close();
}

std::shared_ptr<Stream> Scheduler::submit(std::vector<int64_t> prompt, GivenOptions const& given)
{
    std::vector<std::vector<int64_t>> prompts;
    prompts.push_back(std::move(prompt));
    std::vector<Request> requests = make_requests(*core_, std::move(prompts), given, capacity_);
    auto stream = std::make_shared<Stream>(std::make_shared<Sequence>(std::move(requests[0])));
    std::lock_guard<std::mutex> const lock(mutex_);
    if (closed_)
    {
        throw closed_error();
    }
    if (waiting_.size() >= max_waiting_)
    {
        throw Error(Q2E_QUEUE_FULL, std::to_string(waiting_.size()) + " requests are waiting already; try again later");
    }
    waiting_.push_back(stream);
    changed_.notify_all();
    return stream;
}

bool Scheduler::step(std::chrono::milliseconds wait)
{
    std::lock_guard<std::mutex> const stepping(stepping_);
    {
        std::unique_lock<std::mutex> lock(mutex_);
        auto const ready = [this] { return closed_ || !waiting_.empty() || running_ > 0; };
        if (wait.count() < 0)
        {
            changed_.wait(lock, ready);
        }
        else if (!changed_.wait_for(lock, wait, ready))
        {
            return false;
        }
        if (closed_)
        {
            throw closed_error();
        }
    }
    try
    {
        admit();
        batch_->step();
    }
    catch (...)
    {
        fail_all(std::current_exception());
        throw;
    }
    forget_ended();
    return true;
}

size_t Scheduler::unfinished() const
{
    std::lock_guard<std::mutex> const lock(mutex_);
    return waiting_.size() + running_;
}

void Scheduler::close()
{
    {
        std::lock_guard<std::mutex> const lock(mutex_);
        closed_ = true;
        changed_.notify_all();
    }
    std::lock_guard<std::mutex> const stepping(stepping_);
    fail_all(std::make_exception_ptr(closed_error()));
}

// Waiting requests take the rows that are free.
void Scheduler::admit()
{
    size_t const room = batch_ == nullptr ? 0 : batch_->room();
    std::vector<std::shared_ptr<Sequence>> group;
    std::lock_guard<std::mutex> const lock(mutex_);
    while (!waiting_.empty() && group.size() < room)
    {
        std::shared_ptr<Stream> const stream = std::move(waiting_.front());
        waiting_.pop_front();
        if (stream->shared_sequence()->cancelled)
        {
            stream->finish(nullptr);
            continue;
        }
        group.push_back(stream->shared_sequence());
        admitted_.push_back(stream);
    }
    running_ += group.size();
    batch_->admit(std::move(group));
}

void Scheduler::fail_all(std::exception_ptr const& error)
{
    Waiting waiting;
    {
        std::lock_guard<std::mutex> const lock(mutex_);
        closed_ = true;
        waiting.swap(waiting_);
        running_ = 0;
    }
    for (auto const& stream : waiting)
    {
        stream->finish(error);
    }
    if (batch_ != nullptr)
    {
        batch_->fail(error);
        batch_ = nullptr; // the memory of its cache
    }
    admitted_.clear();
}

void Scheduler::forget_ended()
{
    auto const is_done = [](std::shared_ptr<Stream> const& stream) { return stream->is_done(); };
    admitted_.erase(std::remove_if(admitted_.begin(), admitted_.end(), is_done), admitted_.end());
    std::lock_guard<std::mutex> const lock(mutex_);
    running_ = admitted_.size();
}

} // namespace q2export::runtime
