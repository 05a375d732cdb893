// Checks of arguments that every op shares.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/error.h"
#include "q2export/kernels.h"

namespace q2export
{

// No tensor has this many elements; products of sizes below it do not overflow.
constexpr int64_t kMaxElements = int64_t{1} << 46;

// Refuses `value` outside minimum .. maximum.
inline q2export_status check_range(char const* op, char const* name, int64_t value, int64_t minimum, int64_t maximum)
{
    if (value >= minimum && value <= maximum)
    {
        return Q2EXPORT_SUCCESS;
    }
    return fail(Q2EXPORT_INVALID_ARGUMENT, "%s: %s is %lld, expected %lld .. %lld", op, name,
        static_cast<long long>(value), static_cast<long long>(minimum), static_cast<long long>(maximum));
}

// Refuses a `value` that is no multiple of `divisor`.
inline q2export_status check_multiple(char const* op, char const* name, int64_t value, int64_t divisor)
{
    if (value % divisor == 0)
    {
        return Q2EXPORT_SUCCESS;
    }
    return fail(Q2EXPORT_INVALID_ARGUMENT, "%s: %s is %lld, expected a multiple of %lld", op, name,
        static_cast<long long>(value), static_cast<long long>(divisor));
}

inline q2export_status check_dtype(char const* op, q2export_dtype dtype)
{
    return check_range(op, "dtype", dtype, Q2EXPORT_FLOAT32, Q2EXPORT_BFLOAT16);
}

inline q2export_status check_pointer(char const* op, char const* name, void const* pointer)
{
    if (pointer != nullptr)
    {
        return Q2EXPORT_SUCCESS;
    }
    return fail(Q2EXPORT_INVALID_ARGUMENT, "%s: %s is a null pointer", op, name);
}

// Refuses a product of sizes, each already checked to be at least 0 and at most 2^31, that exceeds kMaxElements.
template <typename... Sizes>
q2export_status check_elements(char const* op, char const* name, Sizes... sizes)
{
    // As floating point, which cannot wrap around.
    double const product = (static_cast<double>(sizes) * ... * 1.0);
    if (product <= static_cast<double>(kMaxElements))
    {
        return Q2EXPORT_SUCCESS;
    }
    return fail(Q2EXPORT_UNSUPPORTED, "%s: %s would have %.0f elements", op, name, product);
}

inline q2export_status check_workspace(char const* op, size_t needed, void const* workspace, size_t bytes)
{
    if (needed == 0)
    {
        return Q2EXPORT_SUCCESS;
    }
    if (workspace == nullptr || bytes < needed)
    {
        return fail(Q2EXPORT_WORKSPACE_TOO_SMALL, "%s: workspace of %zu bytes, expected %zu", op,
            workspace == nullptr ? size_t{0} : bytes, needed);
    }
    if (reinterpret_cast<uintptr_t>(workspace) % Q2EXPORT_WORKSPACE_ALIGNMENT != 0)
    {
        return fail(Q2EXPORT_WORKSPACE_TOO_SMALL, "%s: workspace is not aligned to %d bytes", op,
            Q2EXPORT_WORKSPACE_ALIGNMENT);
    }
    return Q2EXPORT_SUCCESS;
}

// Lays out the parts of a workspace one after another, each aligned. With a null base it only adds up sizes.
class WorkspaceLayout
{
public:
    explicit WorkspaceLayout(void* base)
        : base_(static_cast<unsigned char*>(base))
    {
    }

    template <typename Element>
    Element* take(int64_t elements)
    {
        return static_cast<Element*>(take_bytes(static_cast<size_t>(elements) * sizeof(Element)));
    }

    void* take_bytes(size_t bytes)
    {
        void* const part = base_ == nullptr ? nullptr : base_ + used_;
        constexpr size_t kAlignment = Q2EXPORT_WORKSPACE_ALIGNMENT;
        used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
        return part;
    }

    size_t used() const
    {
        return used_;
    }

private:
    unsigned char* base_;
    size_t used_ = 0;
};

} // namespace q2export
