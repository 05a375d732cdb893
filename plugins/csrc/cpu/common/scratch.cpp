#include "common/scratch.h"

#include <new>

namespace q2export::cpu
{
namespace
{

constexpr std::align_val_t kCacheLine{64};

struct Memory
{
    void* data = nullptr;
    size_t bytes = 0;

    ~Memory()
    {
        ::operator delete(data, kCacheLine);
    }
};

} // namespace

void* thread_scratch(Scratch use, size_t bytes)
{
    static thread_local Memory memories[static_cast<size_t>(Scratch::kCount)];
    Memory& memory = memories[static_cast<size_t>(use)];
    if (memory.bytes < bytes)
    {
        ::operator delete(memory.data, kCacheLine);
        memory.data = nullptr; // should the next line throw
        memory.bytes = 0;
        memory.data = ::operator new(bytes, kCacheLine);
        memory.bytes = bytes;
    }
    return memory.data;
}

} // namespace q2export::cpu
