// manifest.json of an engine package: read and checked as q2export/package/manifest.py does.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "json/json.h"

namespace q2export::runtime
{

struct FileRecord
{
    int64_t bytes = 0;
    std::optional<std::string> sha256; // absent where the data were not read while building
    std::string fingerprint;
};

struct WeightFile
{
    std::string path;
    std::string placement;
    std::vector<std::string> sources;
};

// What made a TensorRT engine.
struct TensorRTInfo
{
    std::string builder;
    std::string builder_version;
    std::string compute_capability;
    int64_t plugin_contract_version = 0;
    bool version_compatible = false;
};

// What a backend must know to load the engine and allocate its cache; sizes as in the manifest.
struct EngineInfo
{
    std::string format;
    std::string file;
    std::string kv_dtype;
    int64_t num_hidden_layers = 0;
    int64_t num_key_value_heads = 0;
    int64_t head_dim = 0;
    int64_t vocab_size = 0;
    int64_t max_batch = 0;
    int64_t max_capacity = 0;
    int64_t prefill_chunk = 0;
    int64_t context_length = 0;
    std::optional<TensorRTInfo> tensorrt;
};

struct Manifest
{
    std::string target;
    EngineInfo engine;
    std::map<std::string, FileRecord> files;
    std::vector<WeightFile> weights;
    int64_t threads = 0; // of the profile; 0 is one per core
    std::string rebuild_command;
};

// Read the text of a manifest. Throws PackageError, naming the file, the key, what was expected and found.
Manifest parse_manifest(std::string_view text, std::string const& label, std::string const& folder);

// The command that builds a package again, from whatever its manifest says.
std::string rebuild_command(json::Value const& manifest, std::string const& folder);

} // namespace q2export::runtime
