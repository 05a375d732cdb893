// Opening the graph of an engine, and holding it against the manifest.
#pragma once

#include <string>

#include "backends/onnxruntime/library.h"
#include "package/manifest.h"

namespace q2export::runtime::ort
{

using Session = Owned<OrtSession>;

// Open an ONNX file with its weights mapped from disk.
//
// threads: of the CPU, of which no more than processors are used; 0 is one per core.
// ops: file of our custom ops; empty registers none, and their function bodies run.
// Throws PackageError with ONNX Runtime's own message.
Session open_session(Library const& library, std::string const& path, int threads, std::string const& ops);

// Whether the graph is one of the CPU target, with ops that no other target has.
bool has_cpu_ops(std::string const& path);

// Throws PackageError if inputs or outputs are not those of the manifest: names the first, and both sides.
void check_signature(Library const& library, OrtSession* session, std::string const& path, EngineInfo const& engine);

// Values of ONNX Runtime for the type of a cache.
ONNXTensorElementDataType element_type(std::string const& dtype);

// "past_key.3" for a layer's cache.
std::string cache_name(char const* name, int64_t layer);

} // namespace q2export::runtime::ort
