#include "machine/source_line.h"

#include <array>
#include <cstdio>

#include <dlfcn.h>

namespace host_cuda
{

std::string source_line(void const* return_address)
{
    Dl_info library{};
    if (dladdr(return_address, &library) == 0)
    {
        return "?";
    }
    auto const call = static_cast<char const*>(return_address) - static_cast<char const*>(library.dli_fbase) - 1;
    std::array<char, 32> address{};
    std::snprintf(address.data(), address.size(), "0x%tx", call);
    std::string const command
        = "addr2line -s -i -e '" + std::string(library.dli_fname) + "' " + address.data() + " 2>&1";
    std::FILE* const output = popen(command.c_str(), "r");
    if (output == nullptr)
    {
        return address.data();
    }
    std::string lines;
    std::array<char, 256> line{};
    while (std::fgets(line.data(), line.size(), output) != nullptr)
    {
        std::string const text = line.data();
        lines += (lines.empty() ? "" : ", in ") + text.substr(0, text.find_first_of(" \n")); // no "(discriminator 2)"
    }
    pclose(output);
    return lines;
}

} // namespace host_cuda
