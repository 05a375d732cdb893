#include "common/error.h"

#include <cstdarg>
#include <cstdio>

namespace q2export::cpu
{
namespace
{

thread_local char message[256] = "";

} // namespace

q2export_status fail(q2export_status status, char const* format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return status;
}

q2export_status check_range(char const* op, char const* name, int64_t value, int64_t minimum, int64_t maximum)
{
    if (value >= minimum && value <= maximum)
    {
        return Q2EXPORT_SUCCESS;
    }
    return fail(Q2EXPORT_INVALID_ARGUMENT, "%s: %s is %lld, expected %lld .. %lld", op, name,
        static_cast<long long>(value), static_cast<long long>(minimum), static_cast<long long>(maximum));
}

q2export_status check_multiple(char const* op, char const* name, int64_t value, int64_t divisor)
{
    if (value % divisor == 0)
    {
        return Q2EXPORT_SUCCESS;
    }
    return fail(Q2EXPORT_INVALID_ARGUMENT, "%s: %s is %lld, expected a multiple of %lld", op, name,
        static_cast<long long>(value), static_cast<long long>(divisor));
}

q2export_status check_pointer(char const* op, char const* name, void const* pointer)
{
    return pointer != nullptr ? Q2EXPORT_SUCCESS
                              : fail(Q2EXPORT_INVALID_ARGUMENT, "%s: %s is a null pointer", op, name);
}

q2export_status check_elements(char const* op, char const* name, int64_t rows, int64_t columns, int64_t depth)
{
    // As floating point, which cannot wrap around.
    double const product = static_cast<double>(rows) * static_cast<double>(columns) * static_cast<double>(depth);
    return product <= static_cast<double>(kMaxElements)
        ? Q2EXPORT_SUCCESS
        : fail(Q2EXPORT_INVALID_ARGUMENT, "%s: %s has %.3g elements, more than 2^46", op, name, product);
}

} // namespace q2export::cpu

extern "C" int32_t q2export_cpu_abi_version(void)
{
    return Q2EXPORT_CPU_ABI_VERSION;
}

extern "C" char const* q2export_cpu_last_error(void)
{
    return q2export::cpu::message;
}
