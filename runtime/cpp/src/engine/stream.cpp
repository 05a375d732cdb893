#include "stream.h"

#include "error.h"

namespace q2export::runtime
{

Stream::Stream(std::shared_ptr<Sequence> sequence)
    : sequence_(std::move(sequence))
{
    sequence_->on_event = [this](Sequence& one, Event const& event) {
        std::lock_guard<std::mutex> const lock(mutex_);
        events_.push_back(event);
        done_ = one.finish_reason != Q2E_FINISH_NONE;
        changed_.notify_all();
    };
    sequence_->on_end = [this](Sequence& one) { finish(one.error); };
}

Next Stream::next(std::chrono::milliseconds wait, Event& event)
{
    std::unique_lock<std::mutex> lock(mutex_);
    auto const ready = [this] { return is_ready(); };
    if (wait.count() < 0)
    {
        changed_.wait(lock, ready);
    }
    else if (!changed_.wait_for(lock, wait, ready))
    {
        return Next::kTimeout;
    }
    return pull(event);
}

void Stream::cancel()
{
    sequence_->cancelled = true;
    std::lock_guard<std::mutex> const lock(mutex_);
    changed_.notify_all();
}

Sequence const* Stream::ended() const
{
    std::lock_guard<std::mutex> const lock(mutex_);
    return done_ && sequence_->finish_reason != Q2E_FINISH_NONE ? sequence_.get() : nullptr;
}

bool Stream::is_done() const
{
    std::lock_guard<std::mutex> const lock(mutex_);
    return done_;
}

bool Stream::is_ready() const
{
    return !events_.empty() || done_ || sequence_->cancelled;
}

Next Stream::pull(Event& event)
{
    if (!events_.empty())
    {
        event = std::move(events_.front());
        events_.pop_front();
        return Next::kEvent;
    }
    if (error_)
    {
        std::rethrow_exception(error_);
    }
    return done_ && sequence_->finish_reason != Q2E_FINISH_NONE ? Next::kEnd : Next::kCancelled;
}

void Stream::finish(std::exception_ptr const& error)
{
    std::lock_guard<std::mutex> const lock(mutex_);
    done_ = true;
    error_ = error;
    changed_.notify_all();
}

DirectStream::DirectStream(std::shared_ptr<Core> core, std::shared_ptr<Sequence> sequence)
    : Stream(std::move(sequence))
{
    size_t const capacity = rounded_capacity(sequence_->longest(), core->engine());
    batch_ = std::make_unique<Batch>(std::move(core), 1, capacity);
    batch_->admit({sequence_});
}

Next DirectStream::next(std::chrono::milliseconds wait, Event& event)
{
    static_cast<void>(wait);
    std::lock_guard<std::mutex> const stepping(stepping_);
    while (true)
    {
        {
            std::lock_guard<std::mutex> const lock(mutex_);
            if (is_ready())
            {
                if (sequence_->cancelled)
                {
                    batch_ = nullptr; // the memory of its cache
                }
                return pull(event);
            }
        }
        try
        {
            batch_->step();
        }
        catch (...)
        {
            finish(std::current_exception());
        }
    }
}

void DirectStream::cancel()
{
    Stream::cancel();
    std::unique_lock<std::mutex> const stepping(stepping_, std::try_to_lock);
    if (stepping.owns_lock())
    {
        batch_ = nullptr;
    }
}

} // namespace q2export::runtime
