// Data races of kernels: accesses to the same byte by two threads, one of them a write, that no barrier orders.
//
// The sources are compiled with -fsanitize=thread, whose calls for every load and store end here instead of in gcc's
// run-time library, so that a race is seen in whatever order the threads happen to run. What orders two accesses is
// what CUDA says does:
//   __syncthreads          in a block
//   __syncwarp, full mask  in a warp; shuffles, votes, ldmatrix and mma order nothing
//   __threadfence, then an atomic operation   between blocks, for those that come to the same address later
// Atomic operations do not race with one another. Local variables are not looked at. While every access is seen anyway,
// a read of shared memory that the block has not written is refused as well.
#pragma once

#include <cstddef>
#include <cstdint>

namespace host_cuda
{

// A point in the life of a block's thread.
struct Moment
{
    uint32_t block; // number within the grid
    uint32_t thread; // within the block
    uint32_t barrier; // how many the block has passed
    uint32_t warp_barrier; // how many the warp has passed
};

// Some source is compiled for it.
void detect_races();

// Starts over with a grid, and with shared memory for a block.
void forget_accesses_of_grid();
void forget_accesses_of_block();

enum class Access
{
    kRead,
    kWrite,
    kAtomic
};

// An access by the running thread, from the instruction before `from`; aborts where it races.
void record_access(void const* address, size_t bytes, Access access, void const* from);

// A read by all lanes of the running thread's warp.
void record_warp_read(void const* address, size_t bytes, void const* from);

// What the running thread, or others of its block before a barrier, have written is visible to blocks that find out
// about a later atomic operation of it.
void record_fence();

} // namespace host_cuda
