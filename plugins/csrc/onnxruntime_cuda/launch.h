// What a CUDA kernel needs besides its tensors: the stream of the run, and memory in between.
#pragma once

#include "node.h"

// The tests run these ops over kernels that were compiled for the host, on the CPU provider.
#if !defined(Q2EXPORT_ORT_PROVIDER)
#define Q2EXPORT_ORT_PROVIDER "CUDAExecutionProvider"
#endif

namespace q2export::onnxruntime
{

inline constexpr char const* kDeviceProvider = Q2EXPORT_ORT_PROVIDER;

// A workspace for one launch, from the allocator of the session's provider. It goes back when this ends, which is
// before the kernel has run: whatever gets it next is queued behind the kernel, on the one stream of the session.
// Sessions are given a stream of their caller's, or are of a single stream (user_compute_stream, enable_cuda_graph).
class Launch
{
public:
    // `near` is an input that lies where the kernel runs.
    Launch(Call const& call, size_t near, size_t workspace_bytes);
    ~Launch();
    Launch(Launch const&) = delete;
    Launch& operator=(Launch const&) = delete;

    q2export_stream stream() const
    {
        return stream_;
    }

    void* workspace() const
    {
        return workspace_;
    }

private:
    OrtApi const& api_;
    OrtAllocator* allocator_ = nullptr;
    q2export_stream stream_ = nullptr;
    void* allocation_ = nullptr;
    void* workspace_ = nullptr;
};

} // namespace q2export::onnxruntime
