#include "backends/onnxruntime/library.h"

#include <cstdlib>
#include <dlfcn.h>
#include <glob.h>
#include <mutex>
#include <unistd.h>
#include <vector>

#include "error.h"

namespace q2export::runtime::ort
{
namespace
{

constexpr char kLibraryVariable[] = "Q2EXPORT_ONNXRUNTIME";
constexpr char kOpsVariable[] = "Q2EXPORT_OPS";
constexpr char kOpsName[] = "libq2export_onnxruntime.so";
constexpr char kTelemetrySwitch[] = "ORT_DISABLE_TELEMETRY";
// From lib/ of the prefix within the Python package, runtime/cpp/prefix/lib.
constexpr char kWheelOps[] = "/../../../../plugins/lib/";
constexpr char kWheelOnnxRuntime[] = "/../../../../../onnxruntime/capi/libonnxruntime.so*";

// The folder of this library; empty where the loader does not say.
std::string own_folder()
{
    Dl_info info{};
    if (dladdr(reinterpret_cast<void const*>(&own_folder), &info) == 0 || info.dli_fname == nullptr)
    {
        return "";
    }
    std::unique_ptr<char, decltype(&std::free)> const real(realpath(info.dli_fname, nullptr), &std::free);
    std::string const path = real ? real.get() : info.dli_fname;
    size_t const slash = path.rfind('/');
    return slash == std::string::npos ? "." : path.substr(0, slash);
}

// The files that a pattern names.
std::vector<std::string> matching(std::string const& pattern)
{
    glob_t found{};
    std::vector<std::string> paths;
    if (glob(pattern.c_str(), 0, nullptr, &found) == 0)
    {
        paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
    }
    globfree(&found);
    return paths;
}

std::vector<std::string> candidates(std::string const& path)
{
    if (!path.empty())
    {
        return {path};
    }
    char const* const named = std::getenv(kLibraryVariable);
    if (named != nullptr && *named != '\0')
    {
        return {named};
    }
    std::vector<std::string> paths = matching(own_folder() + kWheelOnnxRuntime);
    paths.insert(paths.end(), {"libonnxruntime.so.1", "libonnxruntime.so"});
    return paths;
}

void* load(std::string const& path, std::string& loaded)
{
    std::string tried;
    for (std::string const& each : candidates(path))
    {
        void* const handle = dlopen(each.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (handle != nullptr)
        {
            loaded = each;
            return handle;
        }
        tried += std::string(tried.empty() ? "" : "; ") + dlerror();
    }
    throw Error(Q2E_DEPENDENCY_ERROR,
        "ONNX Runtime cannot be loaded (" + tried + "); install it (pip install onnxruntime, or its C package) and name "
            "libonnxruntime.so with the option onnxruntime_library or the environment variable "
            + kLibraryVariable);
}

Library open_new(std::string const& path)
{
    setenv(kTelemetrySwitch, "1", 0); // read while the library is loaded
    Library library;
    void* const handle = load(path, library.path);
    auto const get_base = reinterpret_cast<OrtApiBase const* (*)()>(dlsym(handle, "OrtGetApiBase"));
    if (get_base == nullptr)
    {
        dlclose(handle);
        throw Error(Q2E_DEPENDENCY_ERROR, library.path + ": has no OrtGetApiBase; is this ONNX Runtime?");
    }
    OrtApiBase const* const base = get_base();
    library.version = base->GetVersionString();
    library.api = base->GetApi(onnxruntime::kOrtApiVersion);
    if (library.api == nullptr)
    {
        throw Error(Q2E_DEPENDENCY_ERROR, library.path + ": ONNX Runtime " + library.version + " is too old, libq2export needs 1.18");
    }
    OrtStatus* const status = library.api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "q2export", &library.env);
    if (status != nullptr)
    {
        throw Error(Q2E_DEPENDENCY_ERROR, library.path + ": " + take_message(*library.api, status));
    }
    return library;
}

} // namespace

Library const& open_library(std::string const& path)
{
    static std::mutex mutex;
    static Library* opened = nullptr; // never freed: sessions of other threads may outlive the statics
    std::lock_guard<std::mutex> const lock(mutex);
    if (opened == nullptr)
    {
        opened = new Library(open_new(path));
    }
    return *opened;
}

std::string find_ops_library(std::string const& path)
{
    char const* const named = std::getenv(kOpsVariable);
    if (!path.empty() || (named != nullptr && *named != '\0'))
    {
        return path.empty() ? named : path;
    }
    std::string const folder = own_folder();
    for (std::string const& place : {folder + "/" + kOpsName, folder + kWheelOps + kOpsName})
    {
        if (access(place.c_str(), R_OK) == 0)
        {
            return place;
        }
    }
    return "";
}

std::string take_message(OrtApi const& api, OrtStatus* status)
{
    std::string message = api.GetErrorMessage(status);
    api.ReleaseStatus(status);
    return message;
}

} // namespace q2export::runtime::ort
