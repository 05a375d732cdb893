#include "machine/races.h"

#include <unordered_map>
#include <unordered_set>

#include "machine/accesses.h"
#include "machine/block.h"
#include "machine/fiber.h"
#include "machine/source_line.h"

namespace host_cuda
{
namespace
{

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

// Whether the block of `now` knows that it comes after another one.
bool has_acquired(uint32_t block, Moment const& now)
{
    return block == now.block || detector().acquired.count(block) != 0;
}

// Whether a barrier of the block or the warp was passed between a and b, or a's block has told b's.
bool is_before(Moment const& a, Moment const& b)
{
    if (a.block != b.block)
    {
        return has_acquired(a.block, b);
    }
    return a.barrier < b.barrier || (same_warp(a, b) && a.warp_barrier < b.warp_barrier);
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

void check_write(
    Byte const& byte, uintptr_t address, Moment const& now, Access access, uint32_t lanes, void const* from)
{
    Write const& write = byte.write;
    bool const is_mine = write.at.thread == now.thread && write.at.block == now.block && lanes != kAllLanes;
    bool const are_atomic = write.is_atomic && access == Access::kAtomic;
    if (write.at.thread != kNobody && !is_mine && !are_atomic && !is_before(write.at, now))
    {
        refuse_race(
            address, access == Access::kRead ? "reads" : "writes", from, write.at, "written", write.from);
    }
}

// Of shared memory that no thread of the block has written, nothing may be read. ldmatrix is let off: rows of a tile
// that are not there may be multiplied, for what comes of them need not be used.
void check_written(Byte const& byte, void const* pointer, uint32_t lanes, void const* from)
{
    if (byte.write.at.thread == kNobody && lanes != kAllLanes && is_shared(pointer))
    {
        refuse("it reads shared memory at %p that no thread of the block has written\n  %s", pointer,
            source_line(from).c_str());
    }
}

bool race(Reads const& reads, Moment const& now)
{
    if (reads.at.thread == kNobody)
    {
        return false;
    }
    if (reads.other_block != kNobody && !has_acquired(reads.other_block, now))
    {
        return true;
    }
    if (reads.at.block != now.block)
    {
        return !has_acquired(reads.at.block, now);
    }
    if (reads.at.barrier < now.barrier)
    {
        return false;
    }
    if (reads.has_other_warps || !same_warp(reads.at, now))
    {
        return true;
    }
    uint32_t const others = reads.lanes & ~(1U << now.thread % kWarpLanes);
    return reads.at.warp_barrier == now.warp_barrier && others != 0;
}

void check_reads(Byte const& byte, uintptr_t address, Moment const& now, void const* from)
{
    if (race(byte.reads, now))
    {
        refuse_race(address, "writes", from, byte.reads.at, "read", byte.reads.from);
    }
}

void note_read(Reads& reads, Moment const& now, uint32_t lanes, void const* from)
{
    bool const is_first = reads.at.thread == kNobody;
    if (!is_first && reads.at.block != now.block)
    {
        reads.other_block = has_acquired(reads.at.block, now) ? reads.other_block : reads.at.block;
    }
    bool const is_same_phase = !is_first && reads.at.block == now.block && reads.at.barrier == now.barrier;
    bool const is_same_warp = is_same_phase && same_warp(reads.at, now);
    reads.has_other_warps = is_same_phase && (reads.has_other_warps || !is_same_warp);
    reads.lanes = is_same_warp && reads.at.warp_barrier == now.warp_barrier ? reads.lanes | lanes : lanes;
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
        check_write(byte, address, now, access, lanes, from);
        if (access != Access::kWrite)
        {
            check_written(byte, reinterpret_cast<void const*>(address), lanes, from);
        }
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

void detect_races()
{
    detector().is_on = true;
}

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
