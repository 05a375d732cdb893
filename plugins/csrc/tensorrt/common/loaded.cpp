#include "common/loaded.h"

#include <algorithm>
#include <string>

#include <dlfcn.h>
#include <link.h>

namespace q2export
{
namespace
{

// libnvinfer.so, libnvinfer_lean.so and libnvinfer_dispatch.so are three runtimes with a plugin registry each.
constexpr char const* kLibraries[] = {
    "libnvinfer.so",
    "libnvinfer_lean.so",
    "libnvinfer_dispatch.so",
    "libtensorrt_rtx.so",
};

int collect(dl_phdr_info* info, size_t, void* paths)
{
    std::string const path = info->dlpi_name;
    std::string const file = path.substr(path.find_last_of('/') + 1);
    for (char const* const library : kLibraries)
    {
        if (file.rfind(library, 0) == 0)
        {
            static_cast<std::vector<std::string>*>(paths)->push_back(path);
        }
    }
    return 0;
}

} // namespace

std::vector<void*> loaded_functions(char const* name)
{
    std::vector<std::string> paths;
    dl_iterate_phdr(collect, &paths);
    std::vector<void*> functions;
    for (std::string const& path : paths)
    {
        void* const library = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
        if (library == nullptr)
        {
            continue;
        }
        void* const function = dlsym(library, name);
        if (function != nullptr && std::find(functions.begin(), functions.end(), function) == functions.end())
        {
            functions.push_back(function);
        }
        dlclose(library); // gives back the reference that dlopen took
    }
    return functions;
}

} // namespace q2export
