#include "common/isa.h"

#include <atomic>

#include "common/error.h"

namespace q2export::cpu
{
namespace
{

// The compiler's run-time library asks the processor and the operating system, which has to save the registers.
q2export_cpu_isa best_isa()
{
#if Q2EXPORT_CPU_X86
    __builtin_cpu_init();
    bool const avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    bool const avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
        && __builtin_cpu_supports("avx512vnni");
    if (avx2 && avx512)
    {
        return __builtin_cpu_supports("avx512bf16") ? Q2EXPORT_CPU_AVX512_BF16 : Q2EXPORT_CPU_AVX512;
    }
    if (avx2)
    {
        return Q2EXPORT_CPU_AVX2;
    }
#endif
    return Q2EXPORT_CPU_PORTABLE;
}

std::atomic<q2export_cpu_isa>& selection()
{
    static std::atomic<q2export_cpu_isa> value{best_isa()};
    return value;
}

} // namespace

q2export_cpu_isa selected_isa()
{
    return selection().load(std::memory_order_relaxed);
}

} // namespace q2export::cpu

extern "C" q2export_cpu_isa q2export_cpu_selected_isa(void)
{
    return q2export::cpu::selected_isa();
}

extern "C" q2export_status q2export_cpu_select_isa(q2export_cpu_isa isa)
{
    using namespace q2export::cpu;
    Q2EXPORT_TRY(check_range("select_isa", "isa", isa, Q2EXPORT_CPU_PORTABLE, Q2EXPORT_CPU_AVX512_BF16));
    if (isa > best_isa())
    {
        return fail(Q2EXPORT_UNSUPPORTED, "select_isa: instruction set %d, but this machine has %d", isa, best_isa());
    }
    selection().store(isa, std::memory_order_relaxed);
    return Q2EXPORT_SUCCESS;
}
