#include "tokenizer_config.h"

#include "contract.h"
#include "error.h"
#include "json/json.h"
#include "package/files.h"

namespace q2export::runtime::text
{
namespace
{

using json::Value;

constexpr char const* kNamedTokens[]
    = {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"};
constexpr char kAgree[] = "; save the tokenizer again with transformers so that both agree";
constexpr int64_t kMaxBytes = 16 << 20;

using IdOfToken = std::function<std::optional<int64_t>(std::string_view)>;

Value const* given(Value const& config, char const* name)
{
    Value const* const value = config.find(name);
    return value == nullptr || value->is_null() ? nullptr : value;
}

// A token is written as its text or, by older versions, as an object with its text under `content`.
std::string token_text(std::string const& name, Value const& value)
{
    Value const* const content = value.object() != nullptr ? value.find("content") : &value;
    if (content == nullptr || content->string() == nullptr)
    {
        throw ConfigError(name + " must be a token's text, found " + value.shown());
    }
    return *content->string();
}

void check_tokens(Value const& config, IdOfToken const& id_of_token)
{
    Value const* const declared = given(config, "added_tokens_decoder");
    if (declared != nullptr && declared->object() == nullptr)
    {
        throw ConfigError("added_tokens_decoder must be an object, found " + declared->shown());
    }
    for (auto const& [key, value] : declared == nullptr ? json::Object() : *declared->object())
    {
        std::string const content = token_text("added_tokens_decoder." + key, value);
        std::optional<int64_t> const found = id_of_token(content);
        if (!found || std::to_string(*found) != key)
        {
            throw ConfigError("added_tokens_decoder gives " + shown(content) + " the id " + shown(key) + ", tokenizer.json "
                + (found ? "gives it " + std::to_string(*found) : "does not have it") + kAgree);
        }
    }
    for (char const* const name : kNamedTokens)
    {
        Value const* const value = given(config, name);
        std::string const content = value == nullptr ? "" : token_text(name, *value);
        if (value != nullptr && !id_of_token(content))
        {
            throw ConfigError(std::string(name) + " " + shown(content) + " is not a token of tokenizer.json" + kAgree);
        }
    }
}

std::optional<bool> flag(Value const& config, char const* name)
{
    Value const* const value = given(config, name);
    if (value == nullptr)
    {
        return std::nullopt;
    }
    if (value->flag() == nullptr)
    {
        throw ConfigError(std::string(name) + " must be true or false, found " + value->shown());
    }
    return *value->flag();
}

} // namespace

bool read_tokenizer_config(std::string const& path, IdOfToken const& id_of_token)
{
    if (!exists(path))
    {
        return false;
    }
    try
    {
        Value const config = json::parse(read_text(path, kMaxBytes));
        if (config.object() == nullptr)
        {
            throw ConfigError("expected a JSON object, found " + config.shown());
        }
        check_tokens(config, id_of_token);
        // Versions of transformers differ in which file they follow: the files must agree.
        if (flag(config, "add_prefix_space").value_or(false))
        {
            throw ConfigError("add_prefix_space is true, the pre_tokenizer of tokenizer.json has false; give both files the same");
        }
        return flag(config, "split_special_tokens").value_or(false);
    }
    catch (json::ParseError const& problem)
    {
        throw ConfigError(path + ": not valid JSON: " + problem.message);
    }
    catch (ConfigError const& problem)
    {
        throw ConfigError(path + ": " + problem.what());
    }
    catch (PackageError const& problem)
    {
        throw ConfigError(problem.what());
    }
}

} // namespace q2export::runtime::text
