// Memory that a thread keeps for its tasks, so that none is allocated per call.
#pragma once

#include <cstddef>

namespace q2export::cpu
{

// What a thread's memory holds; each use has its own, so that one may be filled while another is read.
enum class Scratch
{
    kWeights,     // of a tile, widened or unpacked
    kActivations, // of a call, rounded to int8
    kRoundedRow,  // of a task, before it finds its place among a call's activations
    kQueries,     // of a call, rotated; and what its tasks leave for each other
    kExperts,     // of a call: which tokens go to which expert
    kExpertRows,  // of a call: its tokens by expert, and what the experts make of them
    kParts,       // of a task: what a block of keys gave, and all blocks before it
    kKeys,        // of a task's block of keys, and its scores
    kCount
};

// At least `bytes` at a cache line, the same for all calls of a thread; contents are undefined.
// Ends the process where there is no memory.
void* thread_scratch(Scratch use, size_t bytes);

} // namespace q2export::cpu
