#include "machine/fiber.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace host_cuda
{
namespace
{

constexpr size_t kMaxStacks = 1024; // threads of a block
constexpr size_t kStackBytes = 512 * 1024; // committed page by page, as far as a kernel gets
constexpr size_t kGuardBytes = 64 * 1024; // of it; pages may be as large
constexpr size_t kUsableBytes = kStackBytes - kGuardBytes;
constexpr size_t kAlignment = 64;

Fiber* left = nullptr; // the one that was running before the latest switch
Fiber* running = nullptr; // the one that was switched to

// Bytes of a new stack that are used. All stacks begin at the same offset into a page: were they to grow from there,
// the threads of a block would compete for the same few sets of the caches.
size_t next_stack_bytes()
{
    constexpr size_t kStep = 320;
    constexpr size_t kSteps = 128;
    static size_t count = 0;
    return kUsableBytes - kStep * (count++ % kSteps) / kAlignment * kAlignment;
}

// Addresses for the stacks of the largest block.
char* reserve_stacks()
{
    void* const memory = mmap(
        nullptr, kMaxStacks * kStackBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
    {
        std::perror("host_cuda: stacks for the threads of a block");
        std::abort();
    }
    return static_cast<char*>(memory);
}

char* stacks()
{
    static char* const memory = reserve_stacks();
    return memory;
}

// The next stack; the pages at its lower end may not be touched.
void* allocate_stack()
{
    static size_t count = 0;
    char* const stack = stacks() + count++ * kStackBytes + kGuardBytes;
    if (count > kMaxStacks || mprotect(stack, kUsableBytes, PROT_READ | PROT_WRITE) != 0)
    {
        std::perror("host_cuda: a stack for a thread");
        std::abort();
    }
    return stack;
}

} // namespace

// swapcontext does a system call to save the signal mask; a block switches thousands of times.
#if defined(HOST_CUDA_OWN_SWITCH)

extern "C" void host_cuda_switch_stack(void** save_to, void* stack_pointer);

// What the System V ABI has a callee preserve, then the stack pointer, then the same of the other side.
asm(R"(
    .pushsection .text
    .p2align 4
    .hidden host_cuda_switch_stack
    .globl host_cuda_switch_stack
    .type host_cuda_switch_stack, @function
host_cuda_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size host_cuda_switch_stack, . - host_cuda_switch_stack
    .popsection
)");

Fiber::Fiber(void (*entry)())
    : bottom_(allocate_stack())
    , bytes_(next_stack_bytes())
    , entry_(entry)
{
    constexpr size_t kPreserved = 6;
    void** top = reinterpret_cast<void**>(static_cast<char*>(bottom_) + bytes_);
    *--top = nullptr; // a return address, where unwinding stops; with it, the stack is aligned as after a call
    *--top = reinterpret_cast<void*>(&Fiber::start);
    stack_pointer_ = top - kPreserved; // zeros, as fresh memory is
}

#else

Fiber::Fiber(void (*entry)())
    : bottom_(allocate_stack())
    , bytes_(next_stack_bytes())
    , entry_(entry)
{
    getcontext(&context_);
    context_.uc_stack.ss_sp = bottom_;
    context_.uc_stack.ss_size = bytes_;
    context_.uc_link = nullptr;
    makecontext(&context_, &Fiber::start, 0);
}

#endif

bool Fiber::is_on_stack(void const* address)
{
    auto const offset = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(stacks());
    return offset < kMaxStacks * kStackBytes;
}

void Fiber::switch_to(Fiber& other)
{
    left = this;
    running = &other;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake_stack_, other.bottom_, other.bytes_);
#endif
#if defined(HOST_CUDA_OWN_SWITCH)
    host_cuda_switch_stack(&stack_pointer_, other.stack_pointer_);
#else
    swapcontext(&context_, &other.context_);
#endif
    arrive(fake_stack_);
}

void Fiber::start()
{
    arrive(nullptr);
    running->entry_();
    std::abort();
}

// AddressSanitizer has to be told of every change of stack, and tells in return which stack the last one was.
void Fiber::arrive([[maybe_unused]] void* fake_stack)
{
#if defined(__SANITIZE_ADDRESS__)
    void const* bottom = nullptr;
    __sanitizer_finish_switch_fiber(fake_stack, &bottom, &left->bytes_);
    left->bottom_ = const_cast<void*>(bottom);
#endif
}

} // namespace host_cuda
