#include "tokenizer_file.h"

#include <algorithm>
#include <deque>
#include <functional>
#include <optional>
#include <unordered_set>

#include "contract.h"
#include "error.h"
#include "json/reader.h"
#include "package/files.h"
#include "text/tokenizer_config.h"
#include "text/tokenizer_rules.h"

namespace q2export::runtime::text
{
namespace
{

constexpr uint32_t kMostGaps = 1 << 20; // ids without a token

constexpr size_t kAhead = 8;            // look-ups from memory to cache

// Bytes of a tokenizer.json for one token, at least: `"a":1,` and a merge.
constexpr size_t kBytesOfToken = 32;

class FileReader
{
public:
    // The text outlives this.
    explicit FileReader(std::string_view text)
        : text_(text)
        , reader_(text)
        , ids_(text.size() / kBytesOfToken)
    {
        tokens_.reserve(text.size() / kBytesOfToken);
        merges_.reserve(text.size() / kBytesOfToken);
    }

    TokenizerFile read()
    {
        json::Object parts = object([this](std::string_view key) {
            if (key != "model")
            {
                return false;
            }
            if (reader_.next() != '{')
            {
                throw ConfigError("model must be an object, found " + reader_.value(1).shown());
            }
            model_ = object([this](std::string_view name) { return read_of_model(name); });
            return true;
        });
        reader_.finish();
        json::Value const whole(std::move(parts));
        json::Value const model(std::move(model_));
        check_rules(whole, model);
        finish_vocabulary();
        finish_merges();
        add_tokens(added_tokens(whole.find("added_tokens")));
        file_.normalizes = is_nfc(whole.find("normalizer"));
        tokens_around(whole.find("post_processor"), file_.before, file_.after);
        return std::move(file_);
    }

    // The id of a token as it is written, once all are read.
    std::optional<int64_t> find(std::string_view written) const
    {
        uint32_t const* const found = ids_.find(written);
        return found == nullptr ? std::nullopt : std::optional<int64_t>(*found);
    }

private:
    // The members of an object, but those that `read` has read itself.
    template <typename Read>
    json::Object object(Read const& read)
    {
        json::Object result;
        std::unordered_set<std::string> keys;
        reader_.members([&](std::string_view key) {
            std::string name(key);
            reader_.check_new(result, keys, name);
            json::Value value = read(name) ? json::Value() : reader_.value(1);
            result.emplace_back(std::move(name), std::move(value));
        });
        return result;
    }

    bool read_of_model(std::string_view name)
    {
        if (name == "vocab" && reader_.next() == '{')
        {
            reader_.members([this](std::string_view token) { read_token(token); });
            return true;
        }
        if (name == "merges" && reader_.next() == '[')
        {
            reader_.elements([this] { read_merge(); });
            return true;
        }
        return false;
    }

    // A view that lives as long as the text: what has escapes is of another place.
    std::string_view kept(std::string_view view)
    {
        std::less_equal<char const*> const before;
        bool const is_of_text = before(text_.data(), view.data()) && before(view.data(), text_.data() + text_.size());
        return is_of_text ? view : unescaped_.emplace_back(view);
    }

    void read_token(std::string_view written)
    {
        json::Value const value = reader_.value(2);
        int64_t const* const id = value.integer();
        if (id == nullptr || *id < 0 || *id > UINT32_MAX)
        {
            throw ConfigError("model.vocab: the id of " + shown(written) + " must be an integer of at least 0, found " + value.shown());
        }
        tokens_.emplace_back(kept(written), static_cast<uint32_t>(*id));
    }

    // A pair, or, by older versions, a text with a space between the two.
    void read_merge()
    {
        if (reader_.next() != '[')
        {
            std::string_view const both = reader_.next() == '"' ? kept(reader_.string(scratch_)) : std::string_view();
            size_t const space = both.find(' ');
            if (both.substr(0, 8) == "#version")
            {
                return;
            }
            if (space == std::string_view::npos || both.find(' ', space + 1) != std::string_view::npos)
            {
                reader_.refuse("model.merges: expected two tokens with a space between them");
            }
            merges_.emplace_back(both.substr(0, space), both.substr(space + 1));
            return;
        }
        std::string_view parts[2];
        size_t count = 0;
        reader_.elements([&] {
            parts[std::min<size_t>(count++, 1)] = kept(reader_.string(scratch_));
        });
        if (count != 2)
        {
            reader_.refuse("model.merges: expected two tokens");
        }
        merges_.emplace_back(parts[0], parts[1]);
    }

    void finish_vocabulary()
    {
        for (size_t i = 0; i < tokens_.size(); ++i)
        {
            auto const& [written, id] = tokens_[i];
            if (i + kAhead < tokens_.size())
            {
                ids_.prefetch(tokens_[i + kAhead].first);
            }
            if (!ids_.add(written, id))
            {
                throw ConfigError("model.vocab: " + shown(written) + " is given twice");
            }
            if (id >= tokens_.size() + kMostGaps)
            {
                throw ConfigError("model.vocab: " + shown(written) + " has the id " + std::to_string(id) + ", of "
                    + std::to_string(tokens_.size()) + " tokens");
            }
            add_to_vocabulary(id, written);
        }
    }

    void add_to_vocabulary(uint32_t id, std::string_view written)
    {
        if (file_.vocabulary.has(id))
        {
            throw ConfigError("the id " + std::to_string(id) + " is given twice, once to " + shown(written));
        }
        file_.vocabulary.add(id, written);
        file_.longest_token = std::max(file_.longest_token, characters(written));
    }

    void finish_merges()
    {
        file_.merges = Merges(merges_.size());
        for (int byte = 0; byte < 256; ++byte)
        {
            auto const value = static_cast<unsigned char>(byte);
            file_.merges.set_byte(value, id_of(written_byte(value), "the byte-level alphabet"));
        }
        size_t likely = 0; // where the next merge's token is listed: they come in the order of the merges
        std::string joined;
        for (size_t i = 0; i < merges_.size(); ++i)
        {
            auto const& [left, right] = merges_[i];
            if (i + kAhead < merges_.size())
            {
                ids_.prefetch(merges_[i + kAhead].first);
                ids_.prefetch(merges_[i + kAhead].second);
            }
            joined.assign(left).append(right);
            uint32_t const ids[] = {id_of(left, "model.merges"), id_of(right, "model.merges")};
            bool const is_likely = likely < tokens_.size() && tokens_[likely].first == joined;
            uint32_t const merged = is_likely ? tokens_[likely].second : id_of(joined, "model.merges");
            likely = (is_likely ? likely : merged) + 1;
            file_.merges.add(ids[0], ids[1], static_cast<uint32_t>(i), merged);
        }
    }

    uint32_t id_of(std::string_view written, char const* user) const
    {
        uint32_t const* const found = ids_.find(written);
        if (found == nullptr)
        {
            throw ConfigError("model.vocab does not have " + shown(written) + ", which " + user + " needs");
        }
        return *found;
    }

    // Ids are what tokenizers makes of the order: that of the vocabulary, or the next one.
    void add_tokens(std::vector<AddedToken> given)
    {
        auto next = static_cast<int64_t>(tokens_.size());
        std::unordered_set<std::string> contents;
        for (AddedToken const& each : given)
        {
            uint32_t const* const known = ids_.find(each.content);
            int64_t const expected = known != nullptr ? *known : next;
            if (each.id != expected || !contents.insert(each.content).second)
            {
                throw ConfigError("added_tokens: " + shown(each.content) + " has the id " + std::to_string(each.id)
                    + ", tokenizers gives it " + std::to_string(expected) + " or takes it once; save the tokenizer again");
            }
            next = std::max(next, each.id + 1);
            if (known == nullptr)
            {
                add_to_vocabulary(static_cast<uint32_t>(each.id), each.content);
                ids_.add(unescaped_.emplace_back(each.content), static_cast<uint32_t>(each.id));
            }
            file_.longest_token = std::max(file_.longest_token, each.content.size());
        }
        file_.added = AddedTokens(std::move(given));
    }

    static size_t characters(std::string_view text)
    {
        return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char byte) { return (byte & 0xc0) != 0x80; }));
    }

    std::string_view text_;
    TokenizerFile file_;
    json::Reader reader_;
    json::Object model_;
    std::string scratch_;
    std::deque<std::string> unescaped_;
    std::vector<std::pair<std::string_view, uint32_t>> tokens_;
    std::vector<std::pair<std::string_view, std::string_view>> merges_;
    TokenIds ids_;
};

// Run a function; the file is named before what it says.
template <typename Function>
TokenizerFile named(std::string const& path, Function const& function)
{
    try
    {
        return function();
    }
    catch (ConfigError const& problem)
    {
        throw ConfigError(path + ": " + problem.what());
    }
}

} // namespace

TokenizerFile read_tokenizer_files(std::string const& folder)
{
    std::string const path = folder + "/" + kTokenizerFile;
    try
    {
        std::string const text = read_text(path, kMaxTextBytes);
        FileReader reader(text);
        TokenizerFile file = named(path, [&reader] { return reader.read(); });
        std::string const config = folder + "/" + kTokenizerConfigFile;
        file.split_special_tokens = read_tokenizer_config(config, [&reader](std::string_view token) { return reader.find(token); });
        return file;
    }
    catch (json::ParseError const& problem)
    {
        throw ConfigError(path + ": not valid JSON of a tokenizer: " + problem.message);
    }
    catch (PackageError const& problem)
    {
        throw ConfigError(problem.what());
    }
}

} // namespace q2export::runtime::text
