// Opening an engine package: the manifest first, then every file against it (q2export/package/reader.py).
#pragma once

#include <string>

#include "package/manifest.h"

namespace q2export::runtime
{

// A package whose manifest, and as much of the rest as was asked for, is in order.
struct Package
{
    std::string folder; // absolute
    Manifest manifest;

    std::string path(std::string const& name) const
    {
        return folder + "/" + name;
    }

    bool has(std::string const& name) const
    {
        return manifest.files.count(name) != 0;
    }
};

enum class Check
{
    kNone,
    kFast,
    kFull,
};

// Throws PackageError: not a package, another schema version, a malformed manifest, or a file that is missing, leads out
// of the folder or differs; the message names it, both sides and the command that rebuilds.
Package read_package(std::string const& folder, Check check);

} // namespace q2export::runtime
