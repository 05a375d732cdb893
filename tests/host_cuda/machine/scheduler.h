// The threads of a block, and who runs next.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "machine/block.h"
#include "machine/copies.h"
#include "machine/fiber.h"

namespace host_cuda
{

enum class State // of a thread that cannot go on
{
    kAtWarp, // waits for lanes of its warp
    kAtBlock, // waits at a barrier of the block
    kReturned
};

struct Thread
{
    explicit Thread(void (*entry)())
        : fiber(entry)
    {
    }

    Fiber fiber;
    dim3 index;
    unsigned lane = 0;
    State state = State::kReturned;
    Site site{}; // where it waits
    Copies copies;
};

// An operation of a warp that lanes wait for.
struct Meeting
{
    Site site;
    unsigned mask;
    unsigned arrived;
    Arguments arguments;
};

struct Warp
{
    unsigned first; // thread
    unsigned lanes;
    unsigned ready; // mask of the lanes that can go on
    unsigned barriers; // that it has passed
    std::vector<Meeting> meetings; // more than one where lanes have gone different ways
};

class Block
{
public:
    void run(dim3 grid, dim3 block, std::function<void()> const& kernel);
    unsigned meet(Site const& site, unsigned value);
    void meet_warp(Site const& site, unsigned mask, void* argument, Operation operation);

    void pass_warp_barrier();
    Moment moment() const;

    Thread& current()
    {
        return *threads_[current_];
    }

    bool is_running() const
    {
        return kernel_ != nullptr;
    }

    uint32_t seed = 0;

private:
    [[noreturn]] static void enter();
    void reset(dim3 shape);
    void run_warp(Warp& warp);
    void resume(unsigned thread);
    void wait(State state, Site const& site);
    bool pick_ready(size_t* warp);
    bool finish_phase();
    [[noreturn]] void refuse_diverged(Warp const& warp) const;
    unsigned count(State state) const;
    uint32_t random();

    std::vector<std::unique_ptr<Thread>> threads_; // as many as the largest block so far
    std::vector<Warp> warps_;
    unsigned size_ = 0; // threads in this block
    unsigned number_ = 0; // of the block in its grid
    unsigned current_ = 0; // thread
    unsigned barriers_ = 0; // that it has passed
    unsigned sum_ = 0; // at the barrier
    unsigned released_sum_ = 0;
    uint32_t random_ = 1;
    std::function<void()> const* kernel_ = nullptr;
    Fiber main_;
};

// The one block that exists, of one launch after another.
Block& the_block();

} // namespace host_cuda
