#include "tokenizer_rules.h"

#include <algorithm>
#include <string>

#include "error.h"
#include "text/words.h"

namespace q2export::runtime::text
{
namespace
{

using json::Value;

constexpr char kTypes[] = "type";
constexpr char const* kFields[] = {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
    "post_processor", "decoder", "model"};
constexpr char const* kNormalizers[] = {"Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Strip", "StripAccents"};
constexpr size_t kMostParts = 16;
constexpr size_t kMostAdded = 8;      // tokens around a text
constexpr size_t kMostContent = 4096; // bytes of an added token

bool is_absent(Value const* value)
{
    return value == nullptr || value->is_null();
}

std::string text_of(Value const* value)
{
    std::string const* const text = value == nullptr ? nullptr : value->string();
    return text == nullptr ? "" : *text;
}

std::string shown_value(Value const* value)
{
    return is_absent(value) ? "null" : value->shown();
}

// The kind of a component, for messages.
std::string kind_of(Value const* component)
{
    if (is_absent(component))
    {
        return "None";
    }
    Value const* const type = component->find(kTypes);
    return type != nullptr && type->string() != nullptr ? *type->string() : shown_value(type);
}

// The component itself, or those of a sequence.
std::vector<Value const*> parts_of(Value const* component, char const* name, char const* list)
{
    if (is_absent(component))
    {
        return {};
    }
    if (text_of(component->find(kTypes)) != "Sequence")
    {
        return {component};
    }
    Value const* const items = component->find(list);
    if (items == nullptr || items->array() == nullptr)
    {
        throw ConfigError(std::string(name) + "." + list + " must be a list, found " + shown_value(items));
    }
    std::vector<Value const*> parts;
    for (Value const& each : *items->array())
    {
        std::vector<Value const*> const inner = parts_of(&each, name, list);
        parts.insert(parts.end(), inner.begin(), inner.end());
    }
    return parts;
}

bool is_flag(Value const* value, bool wanted)
{
    return value != nullptr && value->flag() != nullptr && *value->flag() == wanted;
}

void check_model(Value const& model)
{
    std::string const type = text_of(model.find(kTypes));
    if (type != "BPE")
    {
        throw ConfigError("model.type must be BPE, as in all Qwen2 models, found " + shown_value(model.find(kTypes)));
    }
    Value const* const dropout = model.find("dropout");
    bool const none = is_absent(dropout) || (dropout->real() != nullptr && *dropout->real() == 0)
        || (dropout->integer() != nullptr && *dropout->integer() == 0);
    if (!none)
    {
        throw ConfigError("model.dropout is " + dropout->shown()
            + ", which is for training: it encodes a text differently each time; set it to null");
    }
    for (char const* const name : {"continuing_subword_prefix", "end_of_word_suffix"})
    {
        Value const* const value = model.find(name);
        if (!is_absent(value) && (value->string() == nullptr || !value->string()->empty()))
        {
            throw ConfigError(std::string("model.") + name + " must be null or empty here, found " + value->shown());
        }
    }
    Value const* const ignores = model.find("ignore_merges");
    if (!is_absent(ignores) && !is_flag(ignores, false))
    {
        throw ConfigError("model.ignore_merges must be false here, found " + ignores->shown());
    }
    for (char const* const name : {"vocab", "merges"})
    {
        Value const* const value = model.find(name);
        if (value == nullptr || !value->is_null())
        {
            throw ConfigError(std::string("model.") + name + " must be " + (name[0] == 'v' ? "an object" : "a list") + ", found "
                + (value == nullptr ? "nothing" : value->shown()));
        }
    }
}

void check_pre_tokenizer(Value const* pre_tokenizer)
{
    std::vector<Value const*> const parts = parts_of(pre_tokenizer, "pre_tokenizer", "pretokenizers");
    std::string kinds;
    for (size_t i = 0; i < parts.size() && i <= kMostParts; ++i)
    {
        kinds += (i == 0 ? "" : ", ") + kind_of(parts[i]);
    }
    if (parts.size() != 2 || kinds != "Split, ByteLevel")
    {
        throw ConfigError("pre_tokenizer must be a Sequence of Split and ByteLevel, as in all Qwen2 models, found "
            + (kinds.empty() ? "None" : kinds));
    }
    Value const* const pattern = parts[0]->find("pattern");
    Value const* const regex = pattern == nullptr ? nullptr : pattern->find("Regex");
    if (text_of(regex) != kWordPattern || text_of(parts[0]->find("behavior")) != "Isolated" || !is_flag(parts[0]->find("invert"), false))
    {
        throw ConfigError("pre_tokenizer: Split must be that of Qwen2, isolated and not inverted, found " + parts[0]->shown()
            + "; the Python runtime takes other patterns");
    }
    for (char const* const name : {"add_prefix_space", "use_regex"})
    {
        if (!is_flag(parts[1]->find(name), false))
        {
            throw ConfigError(std::string("pre_tokenizer: ") + name + " of ByteLevel must be false here, found "
                + shown_value(parts[1]->find(name)));
        }
    }
}

int64_t checked_id(Value const* value, std::string const& name)
{
    int64_t const* const id = value == nullptr ? nullptr : value->integer();
    if (id == nullptr || *id < 0 || *id > INT32_MAX)
    {
        throw ConfigError(name + " must be a token id, found " + shown_value(value));
    }
    return *id;
}

// Ids of a special token of a template.
void append_ids(Value const* special_tokens, std::string const& name, std::vector<int64_t>& ids)
{
    Value const* const token = special_tokens == nullptr ? nullptr : special_tokens->find(name);
    Value const* const list = token == nullptr ? nullptr : token->find("ids");
    if (list == nullptr || list->array() == nullptr)
    {
        throw ConfigError("post_processor.special_tokens does not have the ids of " + shown(name));
    }
    for (Value const& each : *list->array())
    {
        ids.push_back(checked_id(&each, "post_processor.special_tokens: an id of " + shown(name)));
    }
}

void read_template(Value const& processor, std::vector<int64_t>& before, std::vector<int64_t>& after)
{
    Value const* const single = processor.find("single");
    size_t texts = 0;
    bool good = single != nullptr && single->array() != nullptr;
    for (Value const& each : good ? *single->array() : json::Array())
    {
        Value const* const token = each.find("SpecialToken");
        Value const* const sequence = each.find("Sequence");
        if (token != nullptr)
        {
            append_ids(processor.find("special_tokens"), text_of(token->find("id")), texts == 0 ? before : after);
            continue;
        }
        good = good && sequence != nullptr && text_of(sequence->find("id")) == "A";
        ++texts;
    }
    if (!good || texts != 1)
    {
        throw ConfigError("post_processor.single must have the text A once among special tokens, found " + shown_value(single));
    }
}

} // namespace

void check_rules(Value const& file, Value const& model)
{
    for (auto const& [name, value] : *file.object())
    {
        if (std::find(std::begin(kFields), std::end(kFields), name) == std::end(kFields))
        {
            throw ConfigError("the field " + shown(name) + " is unknown");
        }
    }
    if (text_of(file.find("version")) != "1.0")
    {
        throw ConfigError("version must be 1.0, found " + shown_value(file.find("version")));
    }
    check_model(model);
    std::string const decoder = kind_of(file.find("decoder"));
    if (decoder != "ByteLevel")
    {
        throw ConfigError("decoder must be ByteLevel, as in all Qwen2 models, found " + decoder);
    }
    check_pre_tokenizer(file.find("pre_tokenizer"));
}

bool is_nfc(Value const* normalizer)
{
    std::vector<Value const*> const parts = parts_of(normalizer, "normalizer", "normalizers");
    for (Value const* const each : parts)
    {
        std::string const kind = kind_of(each);
        bool const known = std::find(std::begin(kNormalizers), std::end(kNormalizers), kind) != std::end(kNormalizers);
        if (!known || parts.size() > kMostParts)
        {
            throw ConfigError("normalizer must be one of Lowercase, NFC, NFD, NFKC, NFKD, Strip, StripAccents, or a Sequence of at most "
                + std::to_string(kMostParts) + ", found " + (known ? std::to_string(parts.size()) + " of them" : kind));
        }
    }
    for (Value const* const each : parts)
    {
        if (kind_of(each) != "NFC")
        {
            throw ConfigError("normalizer must be NFC or null here, found " + kind_of(each) + "; the Python runtime takes it");
        }
    }
    return !parts.empty();
}

void tokens_around(Value const* post_processor, std::vector<int64_t>& before, std::vector<int64_t>& after)
{
    size_t templates = 0;
    for (Value const* const each : parts_of(post_processor, "post_processor", "processors"))
    {
        std::string const kind = kind_of(each);
        if (kind == "TemplateProcessing" && ++templates == 1)
        {
            read_template(*each, before, after);
        }
        else if (kind != "ByteLevel") // which moves offsets alone
        {
            throw ConfigError("post_processor must be ByteLevel or one TemplateProcessing here, found " + kind);
        }
    }
    size_t const added = before.size() + after.size();
    if (added > kMostAdded)
    {
        throw ConfigError("post_processor adds " + std::to_string(added) + " tokens to a text, the most is " + std::to_string(kMostAdded));
    }
}

std::vector<AddedToken> added_tokens(Value const* list)
{
    if (is_absent(list))
    {
        return {};
    }
    if (list->array() == nullptr)
    {
        throw ConfigError("added_tokens must be a list, found " + list->shown());
    }
    std::vector<AddedToken> tokens;
    for (Value const& each : *list->array())
    {
        std::string const content = text_of(each.find("content"));
        if (content.empty() || content.size() > kMostContent)
        {
            throw ConfigError("added_tokens: content must be a text of 1 to " + std::to_string(kMostContent) + " bytes, found "
                + shown_value(each.find("content")));
        }
        Value const* const special = each.find("special");
        if (special == nullptr || special->flag() == nullptr)
        {
            throw ConfigError("added_tokens: special of " + shown(content) + " must be true or false, found " + shown_value(special));
        }
        for (char const* const name : {"single_word", "lstrip", "rstrip", "normalized"})
        {
            if (!is_flag(each.find(name), false))
            {
                throw ConfigError("added_tokens: " + std::string(name) + " of " + shown(content) + " must be false here, found "
                    + shown_value(each.find(name)));
            }
        }
        tokens.push_back({checked_id(each.find("id"), "added_tokens: id of " + shown(content)), content, *special->flag()});
    }
    return tokens;
}

} // namespace q2export::runtime::text
