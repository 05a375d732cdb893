// What the race detector remembers of each byte.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <unordered_map>

#include "machine/races.h"

namespace host_cuda
{

constexpr uint32_t kNobody = UINT32_MAX;

// The last write.
struct Write
{
    Moment at{0, kNobody, 0, 0};
    bool is_atomic = false;
    void const* from = nullptr;
};

// The reads since then that a write may still race with.
struct Reads
{
    Moment at{0, kNobody, 0, 0}; // the last one
    uint32_t lanes = 0; // of its warp, since the warp's last barrier
    bool has_other_warps = false; // since the block's last barrier
    uint32_t other_block = kNobody;
    void const* from = nullptr; // the last one
};

struct Byte
{
    Write write;
    Reads reads;
};

class Accesses
{
public:
    Byte& at(uintptr_t address)
    {
        if (line_ == nullptr || address / kLine != line_number_)
        {
            line_number_ = address / kLine;
            line_ = &lines_[line_number_];
        }
        return (*line_)[address % kLine];
    }

    void clear()
    {
        lines_.clear();
        line_ = nullptr;
    }

private:
    static constexpr size_t kLine = 64;
    using Line = std::array<Byte, kLine>;

    std::unordered_map<uintptr_t, Line> lines_;
    Line* line_ = nullptr; // the last one looked at
    uintptr_t line_number_ = 0;
};

} // namespace host_cuda
