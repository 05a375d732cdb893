// Which instruction set runs. A kernel family has a table of functions per set; `chosen` picks one.
#pragma once

#include <cstddef>

#include "q2export/cpu.h"

#if defined(__x86_64__) || defined(_M_X64)
#define Q2EXPORT_CPU_X86 1
#else
#define Q2EXPORT_CPU_X86 0
#endif

namespace q2export::cpu
{

q2export_cpu_isa selected_isa();

// The selected one of a family's tables, in the order of q2export_cpu_isa: the last for all sets beyond it.
template <typename Table, size_t kSets>
Table const& chosen(Table const* const (&tables)[kSets])
{
    size_t const isa = static_cast<size_t>(selected_isa());
    return *tables[isa < kSets ? isa : kSets - 1];
}

} // namespace q2export::cpu
