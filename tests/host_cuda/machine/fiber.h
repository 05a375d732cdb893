// Stacks that one OS thread switches between: the threads of a block.
#pragma once

#include <cstddef>

#if defined(__x86_64__) && !defined(HOST_CUDA_UCONTEXT)
#define HOST_CUDA_OWN_SWITCH
#else
#include <ucontext.h>
#endif

namespace host_cuda
{

class Fiber
{
public:
    Fiber() = default; // stands for the OS thread's own stack
    explicit Fiber(void (*entry)()); // of its own stack, kept until the process ends; `entry` never returns
    Fiber(Fiber const&) = delete;
    Fiber& operator=(Fiber const&) = delete;

    // Leaves this one, which has to be the running one, for `other`; returns when something switches back.
    void switch_to(Fiber& other);

    // Whether an address is on any fiber's own stack.
    static bool is_on_stack(void const* address);

private:
    static void start();
    static void arrive(void* fake_stack);

    void* bottom_ = nullptr;
    size_t bytes_ = 0;
    void (*entry_)() = nullptr;
    void* fake_stack_ = nullptr; // AddressSanitizer's
#if defined(HOST_CUDA_OWN_SWITCH)
    void* stack_pointer_ = nullptr;
#else
    ucontext_t context_{};
#endif
};

} // namespace host_cuda
