// Continuous batching: requests come and go while others run, each in a row of one cache.
#pragma once

#include <deque>
#include <map>

#include "engine/stream.h"

namespace q2export::runtime
{

struct SchedulerOptions
{
    size_t rows = 0;        // 0 is the engine's max_batch
    size_t capacity = 0;    // tokens per row; 0 is the engine's max_capacity
    size_t max_waiting = 0; // 0 is 1024
};

class Scheduler
{
public:
    // Throws Error as Batch does.
    Scheduler(std::shared_ptr<Core> core, SchedulerOptions const& options);
    ~Scheduler();

    // From any thread. Throws Error: the request is invalid, the queue is full, the scheduler closed.
    std::shared_ptr<Stream> submit(std::vector<int64_t> prompt, GivenOptions const& given);

    // Compute one step for all; with nothing to do, wait for a request (negative: for ever). False: none came in time.
    // One thread at a time computes, others wait. Throws what ended the engine, and then all streams have ended.
    bool step(std::chrono::milliseconds wait);

    // Requests that run or wait.
    size_t unfinished() const;

    // End all requests and wake who waits.
    void close();

private:
    using Waiting = std::deque<std::shared_ptr<Stream>>;

    void admit();
    void fail_all(std::exception_ptr const& error);
    void forget_ended();

    std::shared_ptr<Core> core_;
    size_t rows_;
    size_t capacity_;
    size_t max_waiting_;

    std::mutex stepping_; // held while the batch is used; taken before mutex_
    std::unique_ptr<Batch> batch_;
    std::vector<std::shared_ptr<Stream>> admitted_; // to be kept while their sequences run

    mutable std::mutex mutex_;
    std::condition_variable changed_;
    Waiting waiting_;
    size_t running_ = 0;
    bool closed_ = false;
};

} // namespace q2export::runtime
