// Tokens pulled as they come, from any thread; cancelled from any other.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>

#include "generate/batch.h"
#include "generate/sequence.h"

namespace q2export::runtime
{

enum class Next
{
    kEvent,
    kEnd,
    kCancelled,
    kTimeout,
};

// The events of one sequence, between the thread that steps and the one that pulls.
class Stream
{
public:
    // Takes the sequence's calls.
    explicit Stream(std::shared_ptr<Sequence> sequence);
    virtual ~Stream() = default;

    // The next token. Negative waits for ever. Throws what ended the sequence.
    virtual Next next(std::chrono::milliseconds wait, Event& event);

    // End the generation, at any time, without waiting.
    virtual void cancel();

    // The sequence, once it has ended with a last token; else null.
    Sequence const* ended() const;

    std::shared_ptr<Sequence> const& shared_sequence() const
    {
        return sequence_;
    }

    // Whether nothing more will come.
    bool is_done() const;

    // End it without a last token.
    void finish(std::exception_ptr const& error);

protected:
    // Whether there is something to pull, or nothing will come.
    bool is_ready() const;
    Next pull(Event& event);

    std::shared_ptr<Sequence> sequence_;
    mutable std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<Event> events_;
    bool done_ = false;
    std::exception_ptr error_;
};

// A stream with a cache of its own, which computes where it is pulled.
class DirectStream : public Stream
{
public:
    DirectStream(std::shared_ptr<Core> core, std::shared_ptr<Sequence> sequence);

    Next next(std::chrono::milliseconds wait, Event& event) override;
    void cancel() override;

private:
    std::mutex stepping_; // held while the batch is used
    std::unique_ptr<Batch> batch_;
};

} // namespace q2export::runtime
