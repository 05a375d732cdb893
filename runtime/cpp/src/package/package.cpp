#include "package.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <sys/stat.h>
#include <unistd.h>

#include "contract.h"
#include "error.h"
#include "package/files.h"
#include "package/graph_check.h"

namespace q2export::runtime
{
namespace
{

std::string absolute(std::string const& path)
{
    if (!path.empty() && path[0] == '/')
    {
        return path;
    }
    std::string folder(4096, '\0');
    if (getcwd(folder.data(), folder.size()) == nullptr)
    {
        throw PackageError(path + ": the current folder cannot be read: " + std::strerror(errno));
    }
    folder.resize(std::strlen(folder.c_str()));
    return folder + "/" + path;
}

bool is_within(std::string const& real, std::string const& folder)
{
    std::string const inside = folder == "/" ? folder : folder + "/";
    return real.compare(0, inside.size(), inside) == 0;
}

bool is_folder(std::string const& path)
{
    struct stat status{};
    return stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

[[noreturn]] void damaged(
    Package const& package, std::string const& name, std::string const& expected, std::string const& found)
{
    std::string shared;
    for (WeightFile const& weight : package.manifest.weights)
    {
        if (weight.path == name && weight.placement == "hardlink")
        {
            shared = " It shares its data with";
            for (std::string const& source : weight.sources)
            {
                shared += " " + source;
            }
            shared += " of the checkpoint: was that edited in place?";
        }
    }
    throw PackageError(package.path(name) + " is not the file " + kManifestName + " describes: expected " + expected
        + ", found " + found + "." + shared + " Restore it, or rebuild with: " + package.manifest.rebuild_command);
}

// What is read because of its name must be what was built, and of a size that can be.
void check_texts(Package const& package)
{
    for (char const* const name : kTextFiles)
    {
        auto const record = package.manifest.files.find(name);
        if (record == package.manifest.files.end())
        {
            if (exists(package.path(name)))
            {
                throw PackageError(package.path(name) + ": " + kManifestName
                    + " lists no such file, and it would change the text; remove it");
            }
        }
        else if (record->second.bytes > kMaxTextBytes)
        {
            throw PackageError(package.path(name) + ": " + std::to_string(record->second.bytes)
                + " bytes, expected at most " + std::to_string(kMaxTextBytes));
        }
    }
}

void check_stat(Package const& package, std::string const& real_folder, std::string const& name, FileRecord const& record)
{
    std::string const expected = std::to_string(record.bytes) + " bytes";
    std::string const path = package.path(name);
    struct stat status{};
    if (stat(path.c_str(), &status) != 0)
    {
        damaged(package, name, expected, errno == ENOENT ? "no such file" : std::strerror(errno));
    }
    std::string const real = real_path(path);
    if (!is_within(real, real_folder))
    {
        damaged(package, name, "a file inside the package", "a link to " + real);
    }
    if (!S_ISREG(status.st_mode))
    {
        damaged(package, name, "a regular file", "something else");
    }
    if (status.st_size != record.bytes)
    {
        damaged(package, name, expected, std::to_string(status.st_size) + " bytes");
    }
}

void check_data(Package const& package, std::string const& name, FileRecord const& record, Check check)
{
    bool const whole = record.sha256 && (record.bytes <= kAlwaysHashedBytes || check == Check::kFull);
    std::string const path = package.path(name);
    std::string const& expected = whole ? *record.sha256 : record.fingerprint;
    std::string const found = whole ? hash_file(path) : fingerprint_file(path);
    if (found != expected)
    {
        std::string const kind = whole ? "sha256 " : "fingerprint ";
        damaged(package, name, kind + expected, found);
    }
}

} // namespace

Package read_package(std::string const& given, Check check)
{
    Package package;
    package.folder = absolute(given);
    while (package.folder.size() > 1 && package.folder.back() == '/')
    {
        package.folder.pop_back();
    }
    std::string const path = package.path(kManifestName);
    if (!exists(path))
    {
        throw PackageError(package.folder + " is not an engine package: it "
            + (is_folder(package.folder) ? "holds no manifest.json" : "is not a folder") + "; make one with q2export build");
    }
    std::string const real_folder = real_path(package.folder);
    std::string const real = real_path(path);
    if (real.empty())
    {
        throw PackageError(path + ": cannot be read: " + std::strerror(errno));
    }
    if (!is_within(real, real_folder))
    {
        throw PackageError(path + ": expected a file inside the package, found a link to " + real);
    }
    package.manifest = parse_manifest(read_text(path, kMaxManifestBytes), path, package.folder);
    if (check == Check::kNone)
    {
        return package;
    }
    check_texts(package);
    for (auto const& [name, record] : package.manifest.files)
    {
        check_stat(package, real_folder, name, record);
    }
    for (auto const& [name, record] : package.manifest.files)
    {
        check_data(package, name, record, check);
    }
    for (auto const& [name, record] : package.manifest.files)
    {
        static_cast<void>(record);
        if (name.size() >= 5 && name.compare(name.size() - 5, 5, kGraphSuffix) == 0)
        {
            check_graph(package.path(name), package.manifest.files, package.manifest.rebuild_command);
        }
    }
    return package;
}

} // namespace q2export::runtime
