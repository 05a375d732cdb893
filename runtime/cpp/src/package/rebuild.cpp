// The command that makes a package again, from what its manifest says, as q2export/package/rebuild.py does.
#include <algorithm>
#include <iterator>

#include "contract.h"
#include "package/manifest.h"

namespace q2export::runtime
{
namespace
{

using json::Value;

constexpr size_t kWordBytes = 200;

bool is_printable(std::string const& text)
{
    return std::none_of(text.begin(), text.end(), [](unsigned char each) { return each < 0x20 || each == 0x7f; });
}

// A printable string of a section, short enough for a message; empty if there is none.
std::string text_of(Value const& manifest, char const* section, char const* key)
{
    Value const* const found = manifest.find(section);
    Value const* const value = found == nullptr ? nullptr : found->find(key);
    std::string const* const text = value == nullptr ? nullptr : value->string();
    return text != nullptr && text->size() <= kWordBytes && is_printable(*text) ? *text : "";
}

// As a word of a shell's command line.
std::string quoted(std::string const& word)
{
    constexpr char kPlain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./-_";
    if (!word.empty() && word.find_first_not_of(kPlain) == std::string::npos)
    {
        return word;
    }
    std::string result = "'";
    for (char const each : word)
    {
        result += each == '\'' ? std::string("'\"'\"'") : std::string(1, each);
    }
    return result + "'";
}

std::string overrides_of(Value const& manifest)
{
    std::string result;
    Value const* const overrides = manifest.find("profile_overrides");
    if (overrides == nullptr || overrides->object() == nullptr)
    {
        return result;
    }
    for (auto const& [key, value] : *overrides->object())
    {
        std::string const setting = key + "=" + (value.string() != nullptr ? *value.string() : value.text());
        result += setting.size() <= kWordBytes && is_printable(setting) ? " --set " + quoted(setting) : "";
    }
    return result;
}

} // namespace

std::string rebuild_command(Value const& manifest, std::string const& folder)
{
    std::string const model = text_of(manifest, "model", "id");
    std::string const revision = text_of(manifest, "model", "revision");
    std::string const profile = text_of(manifest, "profile", "name");
    Value const* const given = manifest.find("profile");
    bool const is_export = given != nullptr && given->is_null();
    std::string command = std::string(kToolName) + (is_export ? " export" : " build") + " --model ";
    command += model.empty() ? "MODEL" : quoted(model.find('/') == std::string::npos ? "path/to/" + model : model);
    command += revision.empty() ? "" : " --revision " + quoted(revision);
    if (!is_export)
    {
        bool const known = std::find(std::begin(kProfileNames), std::end(kProfileNames), profile) != std::end(kProfileNames);
        command += " --profile ";
        command += profile.empty() ? "PROFILE" : known ? profile : quoted("path/to/" + profile + ".yaml");
        command += overrides_of(manifest);
    }
    return command + " --output " + quoted(folder) + " --overwrite";
}

} // namespace q2export::runtime
