// Whether a graph may be given to a library: its size, its files, and nothing of a stranger's.
#pragma once

#include <map>
#include <string>

#include "package/manifest.h"

namespace q2export::runtime
{

// Refuse a graph that no release of q2export writes, as q2export/package/graph_check.py does, which says why.
//
// files: that may hold its weights, by path relative to the folder of `path`.
// Throws PackageError, naming what it holds that it must not.
void check_graph(
    std::string const& path, std::map<std::string, FileRecord> const& files, std::string const& rebuild_command);

} // namespace q2export::runtime
