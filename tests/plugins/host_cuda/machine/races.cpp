#include "machine/races.h"

#include <array>
#include <cstdio>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include <dlfcn.h>

#include "machine/block.h"
#include "machine/fiber.h"

namespace host_cuda
{
namespace
{

constexpr uint32_t kNobody = UINT32_MAX;

// The last write of a byte.
struct Write
{
    Moment at{0, kNobody, 0, 0};
    bool is_atomic = false;
    void const* from = nullptr;
};

// The reads of a byte since then that can still race: those of one warp between two of its barriers, and whether there
// were others before the block's barrier.
struct Reads
{
    Moment at{0, kNobody, 0, 0};
    uint32_t lanes = 0;
    bool are_of_others = false;
    void const* from = nullptr;
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
    Line* line_ = nullptr;
    uintptr_t line_number_ = 0;
};

struct Detector
{
    bool is_on = false; // some source is compiled for it
    Accesses shared;
    Accesses global;
    std::unordered_set<uint32_t> fenced; // threads of this block
    std::unordered_map<uintptr_t, std::unordered_set<uint32_t>> released; // blocks, by the address of their atomics
    std::unordered_set<uint32_t> acquired; // blocks whose writes this block sees
};

Detector& detector()
{
    static Detector& the_detector = *new Detector; // sources may be initialised before this one is
    return the_detector;
}

bool same_warp(Moment const& a, Moment const& b)
{
    return a.block == b.block && a.thread / kWarpLanes == b.thread / kWarpLanes;
}

// Whether all threads of a's warp have passed a barrier between a and b, or a's block has told b's.
bool is_before(Moment const& a, Moment const& b)
{
    if (a.block != b.block)
    {
        return detector().acquired.count(a.block) != 0;
    }
    return a.barrier < b.barrier || (same_warp(a, b) && a.warp_barrier < b.warp_barrier);
}

// Where an instruction is in the sources, as far as the machine's tools can tell.
std::string source_line(void const* from)
{
    Dl_info library{};
    if (dladdr(from, &library) == 0)
    {
        return "?";
    }
    auto const offset = static_cast<char const*>(from) - static_cast<char const*>(library.dli_fbase) - 1;
    std::array<char, 32> hexadecimal{};
    std::snprintf(hexadecimal.data(), hexadecimal.size(), "0x%tx", offset);
    std::FILE* const output = popen(
        ("addr2line -s -i -e '" + std::string(library.dli_fname) + "' " + hexadecimal.data() + " 2>&1").c_str(), "r");
    std::string lines;
    std::array<char, 256> buffer{};
    while (output != nullptr && std::fgets(buffer.data(), buffer.size(), output) != nullptr)
    {
        std::string line = buffer.data();
        line.pop_back();
        lines += (lines.empty() ? "" : " < ") + line;
    }
    if (output != nullptr)
    {
        pclose(output);
    }
    return lines;
}

[[noreturn]] void refuse_race(uintptr_t address, char const* does, void const* from, Moment const& other,
    char const* has_done, void const* other_from)
{
    auto const* const pointer = reinterpret_cast<void const*>(address);
    refuse("race: it %s %s memory at %p that thread %u of block %u has %s, with no barrier in between\n  now:    %s\n"
           "  before: %s",
        does, is_shared(pointer) ? "shared" : "global", pointer, other.thread, other.block, has_done,
        source_line(from).c_str(), source_line(other_from).c_str());
}

void check_write(Byte const& byte, uintptr_t address, Moment const& now, Access access, char const* does, void const* from)
{
    Write const& write = byte.write;
    bool const is_mine = write.at.thread == now.thread && write.at.block == now.block;
    bool const are_atomic = write.is_atomic && access == Access::kAtomic;
    if (write.at.thread != kNobody && !is_mine && !are_atomic && !is_before(write.at, now))
    {
        refuse_race(address, does, from, write.at, "written", write.from);
    }
}

void check_reads(Byte const& byte, uintptr_t address, Moment const& now, void const* from)
{
    Reads const& reads = byte.reads;
    if (reads.at.thread == kNobody)
    {
        return;
    }
    bool const is_behind_barrier = reads.at.block == now.block && reads.at.barrier < now.barrier;
    uint32_t const mine = same_warp(reads.at, now) ? 1U << now.thread % kWarpLanes : 0;
    bool const others_race = reads.are_of_others && !is_behind_barrier;
    if (others_race || ((reads.lanes & ~mine) != 0 && !is_before(reads.at, now)))
    {
        refuse_race(address, "writes", from, reads.at, "read", reads.from);
    }
}

void note_read(Reads& reads, Moment const& now, uint32_t lanes, void const* from)
{
    bool const is_same_phase = reads.at.thread != kNobody && reads.at.block == now.block && reads.at.barrier == now.barrier;
    bool const is_same_warp = is_same_phase && same_warp(reads.at, now);
    bool const is_ordered = reads.at.thread == kNobody || is_before(reads.at, now);
    if (is_same_warp && reads.at.warp_barrier == now.warp_barrier)
    {
        reads.lanes |= lanes;
    }
    else
    {
        reads.are_of_others = (is_same_phase && reads.are_of_others) || !is_ordered;
        reads.lanes = lanes;
    }
    reads.at = now;
    reads.from = from;
}

void record(void const* pointer, size_t bytes, Access access, uint32_t lanes, void const* from)
{
    if (!detector().is_on || !is_in_kernel() || Fiber::is_on_stack(pointer))
    {
        return;
    }
    Moment const now = current_moment();
    Accesses& accesses = is_shared(pointer) ? detector().shared : detector().global;
    auto const begin = reinterpret_cast<uintptr_t>(pointer);
    for (uintptr_t address = begin; address < begin + bytes; ++address)
    {
        Byte& byte = accesses.at(address);
        check_write(byte, address, now, access, access == Access::kRead ? "reads" : "writes", from);
        if (access == Access::kRead)
        {
            note_read(byte.reads, now, lanes, from);
        }
        else
        {
            check_reads(byte, address, now, from);
            byte.write = {now, access == Access::kAtomic, from};
            byte.reads = {};
        }
    }
}

// The running block has seen what blocks before it did before an atomic operation on this address.
void synchronise(uintptr_t address)
{
    Detector& all = detector();
    Moment const now = current_moment();
    std::unordered_set<uint32_t>& blocks = all.released[address];
    all.acquired.insert(blocks.begin(), blocks.end());
    if (all.fenced.count(now.thread) != 0)
    {
        blocks.insert(now.block);
    }
}

} // namespace

void forget_accesses_of_grid()
{
    detector().global.clear();
    detector().released.clear();
}

void forget_accesses_of_block()
{
    detector().shared.clear();
    detector().fenced.clear();
    detector().acquired.clear();
}

void record_access(void const* address, size_t bytes, Access access, void const* from)
{
    if (detector().is_on && access == Access::kAtomic)
    {
        synchronise(reinterpret_cast<uintptr_t>(address));
    }
    record(address, bytes, access, is_in_kernel() ? 1U << current_lane() : 0, from);
}

void record_warp_read(void const* address, size_t bytes, void const* from)
{
    record(address, bytes, Access::kRead, kAllLanes, from);
}

void record_fence()
{
    if (detector().is_on)
    {
        detector().fenced.insert(current_moment().thread);
    }
}

} // namespace host_cuda

// What gcc's -fsanitize=thread calls.
#define HOST_CUDA_ACCESS(bytes)                                                                                        \
    extern "C" void __tsan_read##bytes(void const* address)                                                            \
    {                                                                                                                  \
        host_cuda::record_access(address, bytes, host_cuda::Access::kRead, __builtin_return_address(0));               \
    }                                                                                                                  \
    extern "C" void __tsan_write##bytes(void const* address)                                                           \
    {                                                                                                                  \
        host_cuda::record_access(address, bytes, host_cuda::Access::kWrite, __builtin_return_address(0));              \
    }                                                                                                                  \
    extern "C" void __tsan_unaligned_read##bytes(void const* address)                                                  \
    {                                                                                                                  \
        host_cuda::record_access(address, bytes, host_cuda::Access::kRead, __builtin_return_address(0));               \
    }                                                                                                                  \
    extern "C" void __tsan_unaligned_write##bytes(void const* address)                                                 \
    {                                                                                                                  \
        host_cuda::record_access(address, bytes, host_cuda::Access::kWrite, __builtin_return_address(0));              \
    }

HOST_CUDA_ACCESS(1)
HOST_CUDA_ACCESS(2)
HOST_CUDA_ACCESS(4)
HOST_CUDA_ACCESS(8)
HOST_CUDA_ACCESS(16)

extern "C" void __tsan_read_range(void const* address, size_t bytes)
{
    host_cuda::record_access(address, bytes, host_cuda::Access::kRead, __builtin_return_address(0));
}

extern "C" void __tsan_write_range(void const* address, size_t bytes)
{
    host_cuda::record_access(address, bytes, host_cuda::Access::kWrite, __builtin_return_address(0));
}

extern "C" void __tsan_init()
{
    host_cuda::detector().is_on = true;
}

extern "C" void __tsan_func_entry(void const*) {}

extern "C" void __tsan_func_exit() {}

extern "C" void __tsan_vptr_update(void const*, void const*) {}

extern "C" void __tsan_vptr_read(void const*) {}
