#include "machine/scheduler.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda_runtime.h"

namespace host_cuda
{
namespace
{

bool same(Site const& a, Site const& b)
{
    auto const is_equal = [](char const* x, char const* y) { return x == y || std::strcmp(x, y) == 0; };
    return a.line == b.line && is_equal(a.file, b.file) && is_equal(a.operation, b.operation);
}

unsigned bit(unsigned lane)
{
    return 1U << lane;
}

} // namespace

Block& the_block()
{
    static Block& block = *new Block; // the stacks outlive everything
    return block;
}

// A thread's life: one kernel after another, so that stacks are used again.
void Block::enter()
{
    Block& block = the_block();
    for (;;)
    {
        (*block.kernel_)();
        if (!block.current().copies.finished())
        {
            refuse("returns before it has waited for its asynchronous copies");
        }
        block.wait(State::kReturned, {"return", "", 0});
    }
}

uint32_t Block::random()
{
    random_ ^= random_ << 13; // xorshift, Marsaglia 2003
    random_ ^= random_ >> 17;
    random_ ^= random_ << 5;
    return random_;
}

void Block::reset(dim3 shape)
{
    size_ = shape.x * shape.y * shape.z;
    while (threads_.size() < size_)
    {
        threads_.push_back(std::make_unique<Thread>(&Block::enter));
    }
    warps_.clear();
    for (unsigned i = 0; i < size_; ++i)
    {
        Thread& thread = *threads_[i];
        thread.index = dim3(i % shape.x, i / shape.x % shape.y, i / shape.x / shape.y);
        thread.lane = i % kWarpLanes;
        if (thread.lane == 0)
        {
            unsigned const lanes = std::min(kWarpLanes, size_ - i);
            warps_.push_back({i, lanes, kAllLanes >> (kWarpLanes - lanes), 0, {}});
        }
    }
}

void Block::run(dim3 grid, dim3 block, std::function<void()> const& kernel)
{
    kernel_ = &kernel;
    reset(block);
    number_ = (blockIdx.z * grid.y + blockIdx.y) * grid.x + blockIdx.x;
    barriers_ = 0;
    random_ = (number_ + 1) * 0x9E3779B9U ^ (seed + 1) * 0x85EBCA6BU;
    random_ = random_ == 0 ? 1 : random_;
    do
    {
        for (size_t warp = 0; pick_ready(&warp);)
        {
            run_warp(warps_[warp]);
        }
    } while (!finish_phase());
    kernel_ = nullptr;
}

// Any warp of which a lane can go on.
bool Block::pick_ready(size_t* warp)
{
    size_t const start = random() % warps_.size();
    for (size_t i = 0; i < warps_.size(); ++i)
    {
        *warp = (start + i) % warps_.size();
        if (warps_[*warp].ready != 0)
        {
            return true;
        }
    }
    return false;
}

// Each lane that can go on does, until it has to wait.
void Block::run_warp(Warp& warp)
{
    unsigned const ready = warp.ready;
    bool const backwards = random() >> 31 != 0;
    for (unsigned i = 0; i < warp.lanes; ++i)
    {
        unsigned const lane = backwards ? warp.lanes - 1 - i : i;
        if ((ready & bit(lane)) != 0)
        {
            resume(warp.first + lane);
        }
    }
    if (warp.ready != 0)
    {
        return;
    }
    for (unsigned lane = 0; lane < warp.lanes; ++lane)
    {
        if (threads_[warp.first + lane]->state != threads_[warp.first]->state
            || threads_[warp.first + lane]->state == State::kAtWarp)
        {
            refuse_diverged(warp);
        }
    }
}

void Block::resume(unsigned thread)
{
    current_ = thread;
    threadIdx = threads_[thread]->index;
    main_.switch_to(threads_[thread]->fiber);
}

void Block::wait(State state, Site const& site)
{
    Thread& thread = current();
    thread.state = state;
    thread.site = site;
    warps_[current_ / kWarpLanes].ready &= ~bit(thread.lane);
    thread.fiber.switch_to(main_);
}

// All threads wait at the block's barrier, or have returned; true in the latter case.
bool Block::finish_phase()
{
    unsigned const returned = count(State::kReturned);
    if (returned == size_)
    {
        return true;
    }
    if (returned != 0)
    {
        refuse("%u of %u threads returned before a barrier", returned, size_);
    }
    Site const& first = threads_[0]->site;
    for (unsigned i = 0; i < size_; ++i)
    {
        Thread& thread = *threads_[i];
        if (!same(thread.site, first))
        {
            refuse("threads wait at different barriers, thread 0 at %s (%s:%d), thread %u at %s (%s:%d)",
                first.operation, first.file, first.line, i, thread.site.operation, thread.site.file, thread.site.line);
        }
    }
    for (unsigned i = 0; i < size_; ++i)
    {
        warps_[i / kWarpLanes].ready |= bit(i % kWarpLanes);
    }
    ++barriers_;
    released_sum_ = sum_;
    sum_ = 0;
    return false;
}

unsigned Block::count(State state) const
{
    unsigned found = 0;
    for (unsigned i = 0; i < size_; ++i)
    {
        found += threads_[i]->state == state ? 1 : 0;
    }
    return found;
}

unsigned Block::meet(Site const& site, unsigned value)
{
    sum_ += value;
    wait(State::kAtBlock, site);
    return released_sum_;
}

void Block::meet_warp(Site const& site, unsigned mask, void* argument, Operation operation)
{
    Thread& thread = current();
    Warp& warp = warps_[current_ / kWarpLanes];
    if ((mask & bit(thread.lane)) == 0)
    {
        refuse(
            "%s (%s:%d): lane %u is not in its mask 0x%08x", site.operation, site.file, site.line, thread.lane, mask);
    }
    auto meeting = std::find_if(warp.meetings.begin(), warp.meetings.end(),
        [&](Meeting const& each) { return each.mask == mask && same(each.site, site); });
    if (meeting == warp.meetings.end())
    {
        meeting = warp.meetings.insert(meeting, {site, mask, 0, {}});
    }
    meeting->arrived |= bit(thread.lane);
    meeting->arguments[thread.lane] = argument;
    if (meeting->arrived != mask)
    {
        wait(State::kAtWarp, site); // the last lane to come operates
        return;
    }
    Arguments const arguments = meeting->arguments;
    warp.meetings.erase(meeting);
    operation(arguments, mask);
    warp.ready |= mask;
}

void Block::pass_warp_barrier()
{
    ++warps_[current_ / kWarpLanes].barriers;
}

Moment Block::moment() const
{
    return {number_, current_, barriers_, warps_[current_ / kWarpLanes].barriers};
}

void Block::refuse_diverged(Warp const& warp) const
{
    std::fprintf(stderr, "host_cuda: block (%u, %u, %u): warp %u has diverged and cannot go on:\n", blockIdx.x,
        blockIdx.y, blockIdx.z, warp.first / kWarpLanes);
    for (Meeting const& meeting : warp.meetings)
    {
        std::fprintf(stderr, "  lanes 0x%08x wait at %s (%s:%d) for lanes 0x%08x\n", meeting.arrived,
            meeting.site.operation, meeting.site.file, meeting.site.line, meeting.mask & ~meeting.arrived);
    }
    for (unsigned lane = 0; lane < warp.lanes; ++lane)
    {
        Thread const& thread = *threads_[warp.first + lane];
        if (thread.state == State::kAtBlock)
        {
            std::fprintf(stderr, "  lane %u waits at %s (%s:%d)\n", lane, thread.site.operation, thread.site.file,
                thread.site.line);
        }
        else if (thread.state == State::kReturned)
        {
            std::fprintf(stderr, "  lane %u has returned\n", lane);
        }
    }
    std::abort();
}

} // namespace host_cuda
