// Which instruction set runs. A kernel family has a table of functions per set; `chosen` picks one.
#pragma once

#include "q2export/cpu.h"

#if defined(__x86_64__) || defined(_M_X64)
#define Q2EXPORT_CPU_X86 1
#else
#define Q2EXPORT_CPU_X86 0
#endif

namespace q2export::cpu
{

q2export_cpu_isa selected_isa();

// The selected one of a family's tables, in the order of q2export_cpu_isa.
template <typename Table>
Table const& chosen(Table const* const (&tables)[3])
{
    return *tables[selected_isa()];
}

} // namespace q2export::cpu
