// What kernels need of the block they run in; block.cpp runs it.
//
// The threads of a block are fibers of one OS thread; blocks run one after another. A thread runs until it has to wait
// for others: at an operation of its warp (shuffle, ldmatrix, mma, __syncwarp) or at a barrier of the block. Which warp
// goes on and in which order its lanes do is drawn from a generator that starts from the block's number and the seed,
// so that a result that needs a barrier that is not there differs.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>

#include "machine/races.h"
#include "vector_types.h"

namespace host_cuda
{

constexpr unsigned kWarpLanes = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFU;

// A place in a kernel's source at which threads meet.
struct Site
{
    char const* operation;
    char const* file;
    int line;
};

// The line of the kernel that calls a function which has this as a default argument.
constexpr Site here(char const* operation, char const* file = __builtin_FILE(), int line = __builtin_LINE())
{
    return {operation, file, line};
}

// Aborts: a mistake in the kernel, at this thread's place.
[[noreturn]] __attribute__((format(printf, 1, 2))) void refuse(char const* format, ...);

// Lane of the running thread.
unsigned current_lane();

// Whether a kernel runs, and how far its running thread has come.
bool is_in_kernel();
Moment current_moment();

// Waits for all threads of the block, which have to come to the same place; the sum of their values.
unsigned meet_block(Site const& site, unsigned value = 0);

// Does an operation of a warp, for all lanes at once: the arguments by lane, null for those that are not in the mask.
using Arguments = std::array<void*, kWarpLanes>;
using Operation = void (*)(Arguments const& arguments, unsigned mask);

// Waits for the lanes of the mask, which have to come to the same place with the same mask; the last of them operates.
void meet_warp(Site const& site, unsigned mask, void* argument, Operation operation);

// __syncwarp: with a full mask, a barrier of the warp.
void meet_at_warp_barrier(Site const& site, unsigned mask);

// The block's dynamic shared memory, and whether an address is in it or in static shared memory.
unsigned char* dynamic_shared_memory();
bool is_shared(void const* address);

// The memory instructions take their bytes at multiples of as many.
void check_alignment(Site const& site, void const* address, size_t bytes = 16);
void check_shared(Site const& site, void const* address, bool shared);

// Copies of 4, 8 or 16 bytes in flight, per thread. They arrive when the thread waits for their group, not before; what was
// at the target is lost at once.
void start_copy(Site const& site, void* shared, void const* global, size_t bytes, bool valid);
void commit_copies();
void wait_for_copies(size_t pending_groups);

// Runs a grid; the configuration has been checked.
void run_grid(dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> const& kernel);

} // namespace host_cuda
