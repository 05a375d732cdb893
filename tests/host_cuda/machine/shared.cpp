#include "machine/shared.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "machine/block.h"

// The linker's, of the library this is linked into: its variables without an initial value, static shared memory
// among them.
extern char __bss_start __attribute__((visibility("hidden")));
extern char _end __attribute__((visibility("hidden")));

namespace host_cuda
{
namespace
{

constexpr size_t kAlignment = 1024;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kGuardBytes = 0;
#else
constexpr size_t kGuardBytes = 256;
#endif
constexpr unsigned char kGuard = 0xA5;

unsigned char* memory = nullptr;
size_t memory_bytes = 0;

bool is_within(void const* address, void const* begin, void const* end)
{
    auto const value = reinterpret_cast<uintptr_t>(address);
    return value >= reinterpret_cast<uintptr_t>(begin) && value < reinterpret_cast<uintptr_t>(end);
}

} // namespace

SharedMemory::SharedMemory(size_t bytes)
{
    void* allocated = nullptr;
    if (posix_memalign(&allocated, kAlignment, bytes + kGuardBytes) != 0)
    {
        std::fprintf(stderr, "host_cuda: no memory for %zu bytes of shared memory\n", bytes);
        std::abort();
    }
    memory = static_cast<unsigned char*>(allocated);
    memory_bytes = bytes;
}

SharedMemory::~SharedMemory()
{
    std::free(memory);
    memory = nullptr;
    memory_bytes = 0;
}

void SharedMemory::clear()
{
    std::memset(memory, 0xFF, memory_bytes);
    std::memset(memory + memory_bytes, kGuard, kGuardBytes);
}

void SharedMemory::check() const
{
    unsigned char const* const guard = memory + memory_bytes;
    if (std::any_of(guard, guard + kGuardBytes, [](unsigned char byte) { return byte != kGuard; }))
    {
        refuse("the block has written beyond its %zu bytes of dynamic shared memory", memory_bytes);
    }
}

unsigned char* dynamic_shared_memory()
{
    return memory;
}

bool is_shared(void const* address)
{
    return is_within(address, memory, memory + memory_bytes) || is_within(address, &__bss_start, &_end);
}

void check_shared(Site const& site, void const* address, bool shared)
{
    if (is_shared(address) != shared)
    {
        refuse("%s (%s:%d): address %p is%s in shared memory", site.operation, site.file, site.line, address,
            shared ? " not" : "");
    }
}

void check_alignment(Site const& site, void const* address, size_t bytes)
{
    if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
    {
        refuse("%s (%s:%d): address %p is not a multiple of %zu", site.operation, site.file, site.line, address, bytes);
    }
}

} // namespace host_cuda
