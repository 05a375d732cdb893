// ONNX Runtime on the CPU: mapped weights, and a KV cache that is updated in place.
#pragma once

#include <string>

#include "backends/base.h"

namespace q2export::runtime::ort
{

struct OpenOptions
{
    int threads = 0; // 0 is one per core
    std::string onnxruntime_library;
    std::string ops_library;
};

struct Opened
{
    std::unique_ptr<Backend> backend;
    std::string warning; // empty, or why our kernels do not run the ops
};

// Load the engine of a package. Throws PackageError: ONNX Runtime refuses the graph, or it is not of the engine that the
// manifest describes.
Opened open_backend(std::string const& folder, EngineInfo const& engine, OpenOptions const& options);

} // namespace q2export::runtime::ort
