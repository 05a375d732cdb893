// Keys and values of some sequences: one block [layers, 2, rows, heads, capacity, head_dim].
#pragma once

#include <array>
#include <map>
#include <utility>

#include "backends/base.h"
#include "backends/onnxruntime/session.h"

namespace q2export::runtime::ort
{

// A session with its caches' rows bound as inputs and outputs of the same memory, and what of a step was bound last.
struct Binding
{
    Owned<OrtIoBinding> binding;
    std::array<void const*, 5> addresses{}; // of the step's inputs and its logits
    size_t sequence = 0;
    size_t wanted = 0;
};

// Zeros whose pages are taken only when they are written to.
class LazyMemory
{
public:
    explicit LazyMemory(size_t bytes);
    ~LazyMemory();
    LazyMemory(LazyMemory const&) = delete;
    LazyMemory& operator=(LazyMemory const&) = delete;

    char* data() const
    {
        return data_;
    }

private:
    char* data_;
    size_t bytes_;
};

class OrtCache : public Cache
{
public:
    // Throws GenerationError where there is not enough memory.
    OrtCache(std::shared_ptr<OrtSession> session, EngineInfo const& engine, size_t rows, size_t capacity);

    size_t rows() const override
    {
        return rows_;
    }

    size_t capacity() const override
    {
        return capacity_;
    }

    void move_row(size_t source, size_t target, size_t length) override;

    // Address of a row's keys (index 0) or values (1) of one layer.
    char* row(int64_t layer, size_t index, size_t row) const;

    size_t row_bytes() const
    {
        return heads_ * capacity_ * token_bytes_;
    }

    // By first row and number of rows.
    std::map<std::pair<size_t, size_t>, Binding>& bindings()
    {
        return bindings_;
    }

private:
    std::shared_ptr<OrtSession> session_; // outlives the bindings
    size_t layers_;
    size_t heads_;
    size_t token_bytes_;
    size_t rows_;
    size_t capacity_;
    LazyMemory memory_;
    std::map<std::pair<size_t, size_t>, Binding> bindings_;
};

} // namespace q2export::runtime::ort
