// Reads packages as q2e_engine_open does, up to the point where a library would be given the graph: for sanitizers.
//
//   open_packages            one line "FOLDER" or "FULL FOLDER" of stdin each: prints "ok", or status and message
//   open_packages fuzz N M G S  N mutations of the manifest M and of the graph G, written to S, whatever comes of them
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <random>
#include <string>

#include "error.h"
#include "generate/defaults.h"
#include "json/json.h"
#include "package/graph_check.h"
#include "package/package.h"

using namespace q2export::runtime;

namespace
{

std::string read(char const* path)
{
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

void open(std::string const& line)
{
    try
    {
        bool const is_full = line.rfind("FULL ", 0) == 0;
        Package const package = read_package(is_full ? line.substr(5) : line, is_full ? Check::kFull : Check::kFast);
        read_generation_defaults(package);
        std::cout << "ok\n";
    }
    catch (Error const& problem)
    {
        std::string message = problem.what();
        for (char& each : message)
        {
            each = each == '\n' ? ' ' : each;
        }
        std::cout << problem.status() << ' ' << message << '\n';
    }
}

std::string mutated(std::string text, std::mt19937& random)
{
    for (unsigned int edits = 1 + random() % 3; edits > 0 && !text.empty(); --edits)
    {
        size_t const at = random() % text.size();
        switch (random() % 4)
        {
        case 0: text[at] = static_cast<char>(random()); break;
        case 1: text.erase(at, random() % 9); break;
        case 2: text.insert(at, text.substr(random() % text.size(), random() % 40)); break;
        default: text.resize(at + 1); break;
        }
    }
    return text;
}

template <typename Function>
bool is_taken(Function const& function)
{
    try
    {
        function();
        return true;
    }
    catch (Error const&)
    {
        return false;
    }
}

int fuzz(int count, std::string const& manifest, std::string const& graph, std::string const& scratch)
{
    std::mt19937 random(1);
    std::map<std::string, FileRecord> const files
        = parse_manifest(manifest, "manifest.json", "/p").files;
    int taken = 0;
    for (int i = 0; i < count; ++i)
    {
        std::string const text = mutated(manifest, random);
        taken += is_taken([&] { parse_manifest(text, "manifest.json", "/p"); }) ? 1 : 0;
        std::ofstream(scratch, std::ios::binary) << mutated(graph, random);
        taken += is_taken([&] { check_graph(scratch, files, "rebuild"); }) ? 1 : 0;
    }
    std::cout << taken << " of " << 2 * count << " were taken\n";
    return EXIT_SUCCESS;
}

} // namespace

int main(int count, char** words)
{
    if (count == 6 && std::string(words[1]) == "fuzz")
    {
        return fuzz(std::atoi(words[2]), read(words[3]), read(words[4]), words[5]);
    }
    for (std::string line; std::getline(std::cin, line);)
    {
        open(line);
    }
}
