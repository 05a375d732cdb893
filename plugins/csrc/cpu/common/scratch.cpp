#include "common/scratch.h"

#include <new>

namespace q2export::cpu
{
namespace
{

constexpr std::align_val_t kCacheLine{64};

struct Scratch
{
    float* data = nullptr;
    size_t count = 0;

    ~Scratch()
    {
        ::operator delete(data, kCacheLine);
    }
};

} // namespace

float* thread_scratch(size_t count)
{
    static thread_local Scratch scratch;
    if (scratch.count < count)
    {
        ::operator delete(scratch.data, kCacheLine);
        scratch.data = nullptr; // should the next line throw
        scratch.data = static_cast<float*>(::operator new(count * sizeof(float), kCacheLine));
        scratch.count = count;
    }
    return scratch.data;
}

} // namespace q2export::cpu
