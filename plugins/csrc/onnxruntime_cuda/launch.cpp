#include "launch.h"

#include <cstdint>

namespace q2export::onnxruntime
{

Launch::Launch(Call const& call, size_t near, size_t workspace_bytes)
    : api_(call.api())
{
    check(api_.KernelContext_GetGPUComputeStream(call.context(), &stream_));
    if (workspace_bytes == 0)
    {
        return;
    }
    OrtValue const* value = nullptr;
    check(api_.KernelContext_GetInput(call.context(), near, &value));
    OrtMemoryInfo const* memory = nullptr;
    check(api_.GetTensorMemoryInfo(value, &memory));
    check(api_.KernelContext_GetAllocator(call.context(), memory, &allocator_));
    // ONNX Runtime aligns to 256 bytes on a GPU, to fewer on the CPU.
    OrtStatus* const status
        = api_.AllocatorAlloc(allocator_, workspace_bytes + Q2EXPORT_WORKSPACE_ALIGNMENT, &allocation_);
    if (status != nullptr)
    {
        api_.ReleaseAllocator(allocator_);
        check(status);
    }
    constexpr uintptr_t kMask = Q2EXPORT_WORKSPACE_ALIGNMENT - 1;
    workspace_ = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(allocation_) + kMask) & ~kMask);
}

Launch::~Launch()
{
    if (allocator_ != nullptr)
    {
        if (OrtStatus* const status = api_.AllocatorFree(allocator_, allocation_))
        {
            api_.ReleaseStatus(status); // nothing to be done about it here
        }
        api_.ReleaseAllocator(allocator_);
    }
}

} // namespace q2export::onnxruntime
