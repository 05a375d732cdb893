#include "machine/block.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "cuda_runtime.h"
#include "machine/scheduler.h"
#include "machine/shared.h"

dim3 threadIdx;
dim3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace host_cuda
{

void refuse(char const* format, ...)
{
    std::fprintf(stderr, "host_cuda: block (%u, %u, %u), thread (%u, %u, %u): ", blockIdx.x, blockIdx.y, blockIdx.z,
        threadIdx.x, threadIdx.y, threadIdx.z);
    va_list arguments;
    va_start(arguments, format);
    std::vfprintf(stderr, format, arguments);
    va_end(arguments);
    std::fputc('\n', stderr);
    std::abort();
}

unsigned current_lane()
{
    return the_block().current().lane;
}

bool is_in_kernel()
{
    return the_block().is_running();
}

Moment current_moment()
{
    return the_block().moment();
}

unsigned meet_block(Site const& site, unsigned value)
{
    return the_block().meet(site, value);
}

void meet_warp(Site const& site, unsigned mask, void* argument, Operation operation)
{
    the_block().meet_warp(site, mask, argument, operation);
}

void meet_at_warp_barrier(Site const& site, unsigned mask)
{
    the_block().meet_warp(site, mask, nullptr, [](Arguments const&, unsigned lanes) {
        if (lanes == kAllLanes)
        {
            the_block().pass_warp_barrier();
        }
    });
}

void start_copy(Site const& site, void* shared, void const* global, size_t bytes, bool valid)
{
    check_alignment(site, shared, bytes);
    check_alignment(site, global, bytes);
    check_shared(site, shared, true);
    if (valid) // else the address counts for nothing
    {
        check_shared(site, global, false);
        record_access(global, bytes, Access::kRead, __builtin_return_address(0));
    }
    record_access(shared, bytes, Access::kWrite, __builtin_return_address(0));
    the_block().current().copies.start(shared, global, bytes, valid);
}

void commit_copies()
{
    the_block().current().copies.commit();
}

void wait_for_copies(size_t pending_groups)
{
    the_block().current().copies.wait(
        pending_groups, [from = __builtin_return_address(0)](void const* shared, void const* global, size_t bytes) {
            if (global != nullptr)
            {
                record_access(global, bytes, Access::kRead, from);
            }
            record_access(shared, bytes, Access::kWrite, from);
        });
}

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> const& kernel)
{
    static std::mutex mutex; // static shared memory is one per process
    std::lock_guard<std::mutex> const lock(mutex);
    gridDim = grid;
    blockDim = block;
    forget_accesses_of_grid();
    SharedMemory shared(shared_bytes);
    for (unsigned z = 0; z < grid.z; ++z)
    {
        for (unsigned y = 0; y < grid.y; ++y)
        {
            for (unsigned x = 0; x < grid.x; ++x)
            {
                blockIdx = dim3(x, y, z);
                shared.clear();
                forget_accesses_of_block();
                the_block().run(grid, block, kernel);
                shared.check();
            }
        }
    }
}

} // namespace host_cuda

extern "C" void host_cuda_set_seed(uint32_t seed)
{
    host_cuda::the_block().seed = seed;
}
