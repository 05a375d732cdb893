// SwiGLU as an op of its own: how its elements are cut into tasks.
#include "swiglu/swiglu.h"

#include <algorithm>

#include "common/error.h"
#include "common/isa.h"
#include "common/parallel.h"

namespace q2export::cpu
{
namespace
{

constexpr char kOp[] = "swiglu";
constexpr int64_t kTaskElements = 16 * 1024; // three arrays of them fit the L2 cache; fewer do not repay a second thread

#if Q2EXPORT_CPU_X86
constexpr SwigluKernels const* kTables[3] = {&kSwigluPortable, &kSwigluAvx2, &kSwigluAvx512};
#else
constexpr SwigluKernels const* kTables[3] = {&kSwigluPortable, &kSwigluPortable, &kSwigluPortable};
#endif

} // namespace

SwigluKernels const& swiglu_kernels()
{
    return chosen(kTables);
}

} // namespace q2export::cpu

extern "C" q2export_status q2export_cpu_swiglu(int64_t count, float const* gate, float const* up, float* output,
    q2export_cpu_parallel_for const* parallel_for)
{
    using namespace q2export::cpu;
    Q2EXPORT_TRY(check_range(kOp, "count", count, 0, INT64_C(1) << 40));
    if (count == 0)
    {
        return Q2EXPORT_SUCCESS;
    }
    Q2EXPORT_TRY(check_pointer(kOp, "gate", gate));
    Q2EXPORT_TRY(check_pointer(kOp, "up", up));
    Q2EXPORT_TRY(check_pointer(kOp, "output", output));
    SwigluKernels const& kernels = swiglu_kernels();
    q2export::cpu::parallel_for(parallel_for, (count + kTaskElements - 1) / kTaskElements, [&](int64_t task) {
        int64_t const first = task * kTaskElements;
        kernels.swiglu(gate + first, up + first, output + first, std::min(kTaskElements, count - first));
    });
    return Q2EXPORT_SUCCESS;
}
