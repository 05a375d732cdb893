#include "manifest.h"

#include <algorithm>
#include <cstdio>
#include <ctime>

#include "contract.h"
#include "error.h"
#include "package/schema.h"

namespace q2export::runtime
{
namespace
{

using json::Value;

// The checks below are of values whose types the schema has checked.
std::string const& string_of(Value const& record, char const* key)
{
    return *record.find(key)->string();
}

// What int64_t does not hold is far beyond every limit: the largest stands for it.
int64_t integer_of(Value const& record, char const* key)
{
    Value const& value = *record.find(key);
    bool const negative = value.big_integer() != nullptr && value.big_integer()->digits[0] == '-';
    return value.integer() != nullptr ? *value.integer() : negative ? INT64_MIN : INT64_MAX;
}

std::string number_text(Value const& record, char const* key)
{
    return record.find(key)->shown();
}

void check_range(Value const& record, std::string const& where, char const* key, int64_t low, int64_t high)
{
    int64_t const value = integer_of(record, key);
    if (value < low || value > high || record.find(key)->big_integer() != nullptr)
    {
        std::string const expected = high != INT64_MAX
            ? "from " + std::to_string(low) + " to " + std::to_string(high)
            : low == 0 ? "an integer of at least 0 in 64 bits" : "at least 1, in 64 bits";
        throw PackageError(where + key + " must be " + expected + ", found " + number_text(record, key));
    }
}

void check_digest(Value const& digest, std::string const& where, char const* name)
{
    std::string const* const text = digest.string();
    bool const good = text->size() == 64 && text->find_first_not_of("0123456789abcdef") == std::string::npos;
    if (!good)
    {
        throw PackageError(where + name + " must be 64 lower-case hexadecimal digits, found " + shown(*text));
    }
}

void check_path(std::string const& name, std::string const& label)
{
    bool bad = name == kManifestName;
    for (unsigned char const each : name)
    {
        bad = bad || each < 0x20 || each == 0x7f || each == '\\';
    }
    for (size_t start = 0; !bad && start <= name.size();)
    {
        size_t const end = std::min(name.find('/', start), name.size());
        std::string const part = name.substr(start, end - start);
        bad = part.empty() || part == "." || part == "..";
        start = end + 1;
    }
    if (bad)
    {
        throw PackageError(label + ": " + shown(name) + " is not a valid path of a package file: expected a relative path inside it");
    }
}

FileRecord file_record(Value const& data, std::string const& where)
{
    check_range(data, where, "bytes", 0, INT64_MAX);
    FileRecord record;
    record.bytes = integer_of(data, "bytes");
    record.fingerprint = string_of(data, "fingerprint");
    check_digest(*data.find("fingerprint"), where, "fingerprint");
    Value const& sha256 = *data.find("sha256");
    if (sha256.is_null() == data.find("unhashed_reason")->is_null())
    {
        throw PackageError(where + "exactly one of sha256 and unhashed_reason must be given");
    }
    if (sha256.string() != nullptr)
    {
        check_digest(sha256, where, "sha256");
        record.sha256 = *sha256.string();
    }
    else if (record.bytes <= kAlwaysHashedBytes)
    {
        throw PackageError(where + "sha256 is required for a file of " + std::to_string(record.bytes) + " bytes (up to "
            + std::to_string(kAlwaysHashedBytes) + ")");
    }
    return record;
}

EngineInfo engine_info(Value const& data, std::string const& label)
{
    std::string const where = label + ": engine: ";
    EngineInfo engine;
    engine.format = string_of(data, "format");
    engine.file = string_of(data, "file");
    bool const is_graph_name = engine.file.size() > 5 && engine.file.find('/') == std::string::npos
        && engine.file.compare(engine.file.size() - 5, 5, kGraphSuffix) == 0;
    if (engine.format == "onnx" && !is_graph_name)
    {
        throw PackageError(where + "a graph must be a file *.onnx beside it, found " + shown(engine.file));
    }
    Value const& tensorrt = *data.find("tensorrt");
    if ((engine.format == "tensorrt") == tensorrt.is_null())
    {
        throw PackageError(where + "format '" + engine.format + "' " + (tensorrt.is_null() ? "needs a" : "has no") + " section 'tensorrt'");
    }
    for (SizeLimit const& limit : kEngineLimits)
    {
        check_range(data, where, limit.name, 1, limit.largest);
    }
    check_range(data, where, "context_length", 1, INT64_MAX);
    engine.kv_dtype = string_of(data, "kv_dtype");
    engine.num_hidden_layers = integer_of(data, "num_hidden_layers");
    engine.num_key_value_heads = integer_of(data, "num_key_value_heads");
    engine.head_dim = integer_of(data, "head_dim");
    engine.vocab_size = integer_of(data, "vocab_size");
    engine.max_batch = integer_of(data, "max_batch");
    engine.max_capacity = integer_of(data, "max_capacity");
    engine.prefill_chunk = integer_of(data, "prefill_chunk");
    engine.context_length = integer_of(data, "context_length");
    if (!tensorrt.is_null())
    {
        std::string const inner = label + ": engine.tensorrt: ";
        check_range(tensorrt, inner, "plugin_contract_version", 1, INT64_MAX);
        engine.tensorrt = TensorRTInfo{string_of(tensorrt, "builder"), string_of(tensorrt, "builder_version"),
            string_of(tensorrt, "compute_capability"), integer_of(tensorrt, "plugin_contract_version"),
            *tensorrt.find("version_compatible")->flag()};
    }
    return engine;
}

void read_weights(Manifest& manifest, Value const& data, std::string const& label)
{
    for (char const* const name : {"in_place_bytes", "in_place_tensors", "converted_bytes", "converted_tensors"})
    {
        check_range(data, label + ": weights: ", name, 0, INT64_MAX);
    }
    json::Array const& files = *data.find("files")->array();
    for (size_t i = 0; i < files.size(); ++i)
    {
        std::string const where = label + ": weights.files[" + std::to_string(i) + "]: ";
        check_range(files[i], where, "bytes", 0, INT64_MAX);
        WeightFile weight{string_of(files[i], "path"), string_of(files[i], "placement"), {}};
        auto const listed = manifest.files.find(weight.path);
        if (listed == manifest.files.end())
        {
            throw PackageError(label + ": weights.files names " + shown(weight.path) + ", which files does not list");
        }
        if (listed->second.bytes != integer_of(files[i], "bytes"))
        {
            throw PackageError(label + ": " + weight.path + " has " + number_text(files[i], "bytes")
                + " bytes in weights.files, " + std::to_string(listed->second.bytes) + " in files");
        }
        for (Value const& source : *files[i].find("sources")->array())
        {
            weight.sources.push_back(*source.string());
        }
        manifest.weights.push_back(std::move(weight));
    }
}

// A value of the profile by its dotted key; null where there is none, or a mapping.
Value const* leaf(Value const& profile, std::string const& key)
{
    Value const* found = &profile;
    for (size_t start = 0; found != nullptr && start <= key.size();)
    {
        size_t const end = std::min(key.find('.', start), key.size());
        found = found->find(key.substr(start, end - start));
        start = end + 1;
    }
    return found != nullptr && found->object() == nullptr ? found : nullptr;
}

void check_profile(Manifest& manifest, Value const& data, std::string const& label)
{
    Value const& profile = *data.find("profile");
    for (auto const& [key, value] : *data.find("profile_overrides")->object())
    {
        Value const* const found = leaf(profile, key);
        if (found == nullptr || *found != value)
        {
            throw PackageError(label + ": profile_overrides: " + shown(key) + " is " + value.shown() + ", not so in profile");
        }
    }
    if (profile.is_null())
    {
        return; // an exported graph
    }
    for (char const* const name : {"batch", "prompt", "capacity"})
    {
        Value const& range = *profile.find(name);
        int64_t const low = integer_of(range, "min"), best = integer_of(range, "opt"), high = integer_of(range, "max");
        if (!(1 <= low && low <= best && best <= high))
        {
            throw PackageError(label + ": profile." + name + ": a range needs 1 <= min <= opt <= max, found " + range.shown());
        }
    }
    std::string const where = label + ": profile: ";
    check_range(*profile.find("batch"), where + "batch.", "max", 1, kMaxBatch);
    check_range(*profile.find("capacity"), where + "capacity.", "max", 1, kMaxTokens);
    check_range(profile, where, "threads", 0, kMaxThreads);
    manifest.threads = integer_of(profile, "threads");
}

void check_summaries(Value const& data, std::string const& label)
{
    Value const& parity = *data.find("parity");
    if (parity.is_null() == data.find("parity_skipped")->is_null())
    {
        throw PackageError(label + ": exactly one of parity and parity_skipped must be given");
    }
    if (!parity.is_null())
    {
        check_range(parity, label + ": parity: ", "tokens", 1, INT64_MAX);
    }
    if (!data.find("quality")->is_null() && !data.find("quality_skipped")->is_null())
    {
        throw PackageError(label + ": not both of quality and quality_skipped may be given");
    }
    std::tm time{};
    std::string const& created = string_of(data, "created");
    char const* const end = strptime(created.c_str(), "%Y-%m-%dT%H:%M:%SZ", &time);
    if (end == nullptr || *end != '\0')
    {
        throw PackageError(label + ": created must look like 2026-11-30T12:00:00Z, found " + shown(created));
    }
}

void check_versions(Value const& data, std::string const& label, std::string const& folder)
{
    Value const* const schema = data.find("schema_version");
    if (schema == nullptr || (schema->integer() == nullptr && schema->big_integer() == nullptr))
    {
        throw PackageError(label + ": schema_version must be an integer, found " + (schema == nullptr ? "nothing" : schema->shown()));
    }
    int64_t const found = integer_of(data, "schema_version");
    if (found != kManifestSchemaVersion)
    {
        throw PackageError(label + ": schema version " + schema->shown() + " is "
            + (found > kManifestSchemaVersion ? "newer" : "older") + " than version " + std::to_string(kManifestSchemaVersion)
            + ", which " + kToolName + " " + kVersion + " reads; rebuild with: " + rebuild_command(data, folder));
    }
}

} // namespace

Manifest parse_manifest(std::string_view text, std::string const& label, std::string const& folder)
{
    Value data;
    try
    {
        data = json::parse(text);
    }
    catch (json::ParseError const& problem)
    {
        throw PackageError(label + ": not valid JSON: " + problem.message);
    }
    if (data.object() == nullptr)
    {
        throw PackageError(label + ": expected a JSON object, found " + data.shown());
    }
    check_versions(data, label, folder);
    schema::check(schema::manifest_type(), data, label);
    check_summaries(data, label);
    Manifest manifest;
    manifest.rebuild_command = rebuild_command(data, folder);
    int64_t const contract = integer_of(data, "op_contract_version");
    if (contract != kOpContractVersion)
    {
        throw PackageError(label + ": built for version " + number_text(data, "op_contract_version")
            + " of the custom ops, this libq2export has version " + std::to_string(kOpContractVersion)
            + "; rebuild with: " + manifest.rebuild_command);
    }
    manifest.target = string_of(data, "target");
    for (auto const& [name, record] : *data.find("files")->object())
    {
        check_path(name, label);
        manifest.files.emplace(name, file_record(record, label + ": files[" + shown(name) + "]: "));
    }
    manifest.engine = engine_info(*data.find("engine"), label);
    if (manifest.files.count(manifest.engine.file) == 0)
    {
        throw PackageError(label + ": engine.file names " + shown(manifest.engine.file) + ", which files does not list");
    }
    read_weights(manifest, *data.find("weights"), label);
    check_profile(manifest, data, label);
    return manifest;
}

} // namespace q2export::runtime
