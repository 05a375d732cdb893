#include "defaults.h"

#include <algorithm>

#include "contract.h"
#include "error.h"
#include "json/json.h"
#include "package/files.h"

namespace q2export::runtime
{
namespace
{

struct IdleValues
{
    char const* name;
    char const* values; // a list in JSON: the field does nothing at these
};

#include "generated/options.inc"

using json::Value;

Value read(std::string const& path)
{
    try
    {
        Value value = json::parse(read_text(path, kMaxConfigBytes));
        if (value.object() == nullptr)
        {
            throw ConfigError(path + ": expected a JSON object, found " + value.shown());
        }
        return value;
    }
    catch (json::ParseError const& problem)
    {
        throw ConfigError(path + ": not valid JSON: " + problem.message);
    }
    catch (PackageError const& problem)
    {
        throw ConfigError(problem.what());
    }
}

Value const* given(Value const& config, char const* name)
{
    Value const* const value = config.find(name);
    return value == nullptr || value->is_null() ? nullptr : value;
}

GenerationOptions read_options(Value const& config, std::string const& path)
{
    GivenOptions options;
    bool samples = false;
    for (char const* const name : kConfigured)
    {
        Value const* const value = given(config, name);
        if (value == nullptr)
        {
            continue;
        }
        try
        {
            if (value->flag() != nullptr)
            {
                samples = samples || std::string(name) == "do_sample";
                options.set(name, *value->flag());
            }
            else if (value->integer() != nullptr)
            {
                options.set(name, *value->integer());
            }
            else if (value->real() != nullptr)
            {
                options.set(name, *value->real());
            }
            else
            {
                options.set(name, std::vector<std::string>{""}); // of no option here: refused in the option's words
            }
        }
        catch (GenerationError const& problem)
        {
            throw ConfigError(path + ": " + problem.what());
        }
    }
    GenerationOptions result = options.over({});
    result.do_sample = samples && result.do_sample; // temperature and the like ask for nothing here
    return result;
}

std::vector<int64_t> read_eos(Value const& config, std::string const& path, int64_t vocab_size)
{
    std::vector<int64_t> ids;
    Value const* const value = given(config, "eos_token_id");
    if (value == nullptr)
    {
        return ids;
    }
    json::Array const one{*value};
    json::Array const& several = value->array() != nullptr ? *value->array() : one;
    for (Value const& each : several)
    {
        int64_t const* const id = each.integer();
        if (id == nullptr || *id < 0)
        {
            throw ConfigError(path + ": eos_token_id must be a token id, a list of token ids or null, found " + value->shown());
        }
        if (*id >= vocab_size)
        {
            throw ConfigError(path + ": eos_token_id " + std::to_string(*id) + " is outside the engine's vocabulary of "
                + std::to_string(vocab_size));
        }
        if (std::find(ids.begin(), ids.end(), *id) == ids.end())
        {
            ids.push_back(*id);
        }
    }
    return ids;
}

} // namespace

GenerationDefaults read_generation_defaults(Package const& package)
{
    GenerationDefaults defaults;
    for (char const* const name : {"generation_config.json", "config.json"})
    {
        if (!package.has(name))
        {
            continue;
        }
        std::string const path = package.path(name);
        Value const config = read(path);
        defaults.options = read_options(config, path);
        defaults.eos_token_ids = read_eos(config, path, package.manifest.engine.vocab_size);
        for (IdleValues const& each : kUnsupported)
        {
            Value const* const value = given(config, each.name);
            Value const idle = json::parse(each.values);
            if (value != nullptr && std::find(idle.array()->begin(), idle.array()->end(), *value) == idle.array()->end())
            {
                defaults.warnings += path + ": " + each.name + "=" + value->shown() + " is not supported and has no effect\n";
            }
        }
        break;
    }
    return defaults;
}

} // namespace q2export::runtime
