// CUDA kernels on the host: the test compiles the .cu sources as C++ with this folder before the toolkit's.
//
// The threads of a block are fibers of one OS thread, so that __syncthreads works, blocks run one after another, and
// __shared__ is static. Between two barriers the threads run in order, the next time in reverse order: a result that
// needs a barrier that is not there differs. A barrier that not all threads of the block reach aborts.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include <ucontext.h>

#include "cuda_runtime_api.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __shared__ static

struct dim3
{
    unsigned x;
    unsigned y;
    unsigned z;

    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1)
        : x(x_)
        , y(y_)
        , z(z_)
    {
    }
};

inline thread_local dim3 threadIdx;
inline thread_local dim3 blockIdx;
inline thread_local dim3 blockDim;

struct cudaLaunchConfig_t
{
    dim3 gridDim;
    dim3 blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
};

namespace host_cuda
{

// Runs the threads of a block until all have returned.
class Block
{
public:
    explicit Block(unsigned threads)
        : fibers_(threads)
    {
        for (Fiber& fiber : fibers_)
        {
            fiber.stack.resize(kStackBytes);
        }
    }

    void run(std::function<void()> const& kernel)
    {
        kernel_ = &kernel;
        for (Fiber& fiber : fibers_)
        {
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.data();
            fiber.context.uc_stack.ss_size = fiber.stack.size();
            fiber.context.uc_link = nullptr;
            fiber.finished = false;
            makecontext(&fiber.context, &Block::enter, 0);
        }
        current_block() = this;
        for (bool backwards = false; !finished(); backwards = !backwards)
        {
            for (size_t i = 0; i < fibers_.size(); ++i)
            {
                resume(backwards ? fibers_.size() - 1 - i : i);
            }
        }
    }

    // __syncthreads: back to run(), until every other thread has come here too.
    void wait()
    {
        Fiber& fiber = fibers_[current_];
        void* fake_stack = nullptr;
        leave(&fake_stack, main_stack_, main_stack_bytes_);
        swapcontext(&fiber.context, &main_);
        arrive(fake_stack);
    }

    static Block*& current_block()
    {
        static thread_local Block* block = nullptr;
        return block;
    }

private:
    struct Fiber
    {
        ucontext_t context;
        std::vector<char> stack;
        bool finished;
    };

    static constexpr size_t kStackBytes = 64 * 1024;

    static void enter()
    {
        Block* const block = current_block();
        block->arrive(nullptr);
        (*block->kernel_)();
        block->fibers_[block->current_].finished = true;
        block->leave(nullptr, block->main_stack_, block->main_stack_bytes_);
        setcontext(&block->main_);
    }

    void resume(size_t index)
    {
        current_ = index;
        threadIdx = dim3(static_cast<unsigned>(index));
        Fiber& fiber = fibers_[index];
        void* fake_stack = nullptr;
        leave(&fake_stack, fiber.stack.data(), fiber.stack.size());
        swapcontext(&main_, &fiber.context);
        finish_switch(fake_stack, nullptr, nullptr);
    }

    // Whether all threads have returned; they must do so together.
    bool finished() const
    {
        size_t const count
            = std::count_if(fibers_.begin(), fibers_.end(), [](Fiber const& fiber) { return fiber.finished; });
        if (count != 0 && count != fibers_.size())
        {
            std::fprintf(stderr, "%zu of %zu threads returned before a barrier\n", count, fibers_.size());
            std::abort();
        }
        return count != 0;
    }

    void arrive(void* fake_stack)
    {
        finish_switch(fake_stack, &main_stack_, &main_stack_bytes_);
    }

    // AddressSanitizer has to be told of every change of stack.
#if defined(__SANITIZE_ADDRESS__)
    static void leave(void** fake_stack, void const* to, size_t bytes)
    {
        __sanitizer_start_switch_fiber(fake_stack, to, bytes);
    }

    static void finish_switch(void* fake_stack, void const** from, size_t* bytes)
    {
        __sanitizer_finish_switch_fiber(fake_stack, from, bytes);
    }
#else
    static void leave(void**, void const*, size_t) {}

    static void finish_switch(void*, void const**, size_t*) {}
#endif

    std::vector<Fiber> fibers_;
    std::function<void()> const* kernel_ = nullptr;
    ucontext_t main_{};
    void const* main_stack_ = nullptr;
    size_t main_stack_bytes_ = 0;
    size_t current_ = 0;
};

} // namespace host_cuda

inline void __syncthreads()
{
    host_cuda::Block::current_block()->wait();
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(cudaLaunchConfig_t const* config, void (*kernel)(Parameters...), Arguments... arguments)
{
    static_assert((std::is_same_v<std::remove_const_t<Parameters>, std::remove_const_t<Arguments>> && ...));
    host_cuda::Block block(config->blockDim.x);
    blockDim = config->blockDim;
    std::function<void()> const body = [&] { kernel(arguments...); };
    for (unsigned index = 0; index < config->gridDim.x; ++index)
    {
        blockIdx = dim3(index);
        block.run(body);
    }
    return cudaSuccess;
}
