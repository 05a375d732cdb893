#include "backends/onnxruntime/cache.h"

#include <algorithm>
#include <cstring>
#include <sys/mman.h>

#include "contract.h"
#include "error.h"

namespace q2export::runtime::ort
{
namespace
{

size_t itemsize(std::string const& dtype)
{
    auto const found = std::find_if(
        std::begin(kFloatTypes), std::end(kFloatTypes), [&dtype](Dtype const& each) { return dtype == each.name; });
    return found->itemsize; // the manifest's types are among them
}

// Of the whole cache; 0 where that is more than there can be.
size_t block_bytes(EngineInfo const& engine, size_t rows, size_t capacity)
{
    size_t bytes = 2 * itemsize(engine.kv_dtype);
    for (size_t const factor : {static_cast<size_t>(engine.num_hidden_layers),
             static_cast<size_t>(engine.num_key_value_heads), static_cast<size_t>(engine.head_dim), rows, capacity})
    {
        if (__builtin_mul_overflow(bytes, factor, &bytes))
        {
            return 0;
        }
    }
    return bytes;
}

void* mapped(size_t bytes)
{
    return bytes == 0 ? MAP_FAILED
                      : mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

} // namespace

LazyMemory::LazyMemory(size_t bytes)
    : bytes_(bytes)
{
    void* const data = mapped(bytes);
    if (data == MAP_FAILED)
    {
        throw GenerationError("no memory for a cache of " + std::to_string(bytes >> 20) + " MiB; ask for fewer tokens");
    }
    data_ = static_cast<char*>(data);
}

LazyMemory::~LazyMemory()
{
    munmap(data_, bytes_);
}

OrtCache::OrtCache(std::shared_ptr<OrtSession> session, EngineInfo const& engine, size_t rows, size_t capacity)
    : session_(std::move(session))
    , layers_(static_cast<size_t>(engine.num_hidden_layers))
    , heads_(static_cast<size_t>(engine.num_key_value_heads))
    , token_bytes_(static_cast<size_t>(engine.head_dim) * itemsize(engine.kv_dtype))
    , rows_(rows)
    , capacity_(capacity)
    , memory_(block_bytes(engine, rows, capacity))
{
}

char* OrtCache::row(int64_t layer, size_t index, size_t row) const
{
    size_t const place = (static_cast<size_t>(layer) * 2 + index) * rows_ + row;
    return memory_.data() + place * row_bytes();
}

void OrtCache::move_row(size_t source, size_t target, size_t length)
{
    for (size_t slab = 0; slab < 2 * layers_; ++slab)
    {
        char const* const from = row(static_cast<int64_t>(slab / 2), slab % 2, source);
        char* const to = row(static_cast<int64_t>(slab / 2), slab % 2, target);
        for (size_t head = 0; head < heads_; ++head)
        {
            size_t const offset = head * capacity_ * token_bytes_;
            std::memcpy(to + offset, from + offset, length * token_bytes_);
        }
    }
}

} // namespace q2export::runtime::ort
