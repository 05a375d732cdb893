// ONNX Runtime, opened at run time: one library of ours serves machines with any version from 1.18 on.
#pragma once

#include <memory>
#include <string>

#include "ort_abi.h"

namespace q2export::runtime::ort
{

// What ONNX Runtime is, once loaded; it stays until the process ends.
struct Library
{
    OrtApi const* api = nullptr;
    OrtEnv* env = nullptr;
    std::string path;
    std::string version;
};

// Load it, once per process; the first call decides which.
//
// path: file to load; empty looks for it: the environment variable Q2EXPORT_ONNXRUNTIME, the Python package
// onnxruntime beside the one that holds this library, then the loader's own search for libonnxruntime.so.1.
// Throws Error of Q2E_DEPENDENCY_ERROR, naming all places.
Library const& open_library(std::string const& path);

// libq2export_onnxruntime.so: as given, else of the environment variable Q2EXPORT_OPS, else beside this library or in
// the Python package that holds it. Empty where there is none.
std::string find_ops_library(std::string const& path);

// The message of a failed call; releases the status.
std::string take_message(OrtApi const& api, OrtStatus* status);

// Objects of ONNX Runtime that are released by its own functions.
template <typename T>
struct Releaser
{
    void (*release)(T*) = nullptr;

    void operator()(T* object) const
    {
        release(object);
    }
};

template <typename T>
using Owned = std::unique_ptr<T, Releaser<T>>;

template <typename T>
Owned<T> owned(T* object, void (*release)(T*))
{
    return Owned<T>(object, Releaser<T>{release});
}

} // namespace q2export::runtime::ort
