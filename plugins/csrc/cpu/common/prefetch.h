// Hints, which never fault.
#pragma once

namespace q2export::cpu
{
namespace
{

inline void prefetch(void const* address)
{
#if defined(__GNUC__)
    __builtin_prefetch(address);
#else
    static_cast<void>(address);
#endif
}

} // namespace
} // namespace q2export::cpu
