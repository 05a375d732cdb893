#include "tokenizer.h"

#include "error.h"
#include "json/json.h"
#include "text/tokenizer_file.h"
#include "text/unicode.h"
#include "text/words.h"

namespace q2export::runtime
{
namespace
{

constexpr size_t kNormalized = 4; // NFC makes no text shorter than a quarter of its bytes

using text::AddedToken;
using text::TokenizerFile;

std::vector<AddedToken> special_ones(std::vector<AddedToken> const& tokens)
{
    std::vector<AddedToken> special;
    for (AddedToken const& each : tokens)
    {
        if (each.special)
        {
            special.push_back(each);
        }
    }
    return special;
}

class BytePairTokenizer : public Tokenizer
{
public:
    explicit BytePairTokenizer(TokenizerFile file)
        : file_(std::move(file))
        , special_(special_ones(file_.added.all()))
        , is_special_(file_.vocabulary.size())
    {
        for (AddedToken const& each : special_.all())
        {
            is_special_[static_cast<size_t>(each.id)] = true;
        }
    }

    std::vector<int64_t> encode(std::string_view text, EncodeOptions const& options) const override
    {
        check(text, options.most_tokens);
        std::vector<int64_t> ids;
        if (options.add_special_tokens)
        {
            ids = file_.before;
        }
        if (options.special_tokens_as_text)
        {
            encode_apart(text, special_, {{0, text.size()}}, ids);
        }
        else
        {
            check_spans(text, options.given);
            encode_apart(text, file_.added, options.given, ids);
        }
        if (options.add_special_tokens)
        {
            ids.insert(ids.end(), file_.after.begin(), file_.after.end());
        }
        return ids;
    }

    std::string decode(std::vector<int64_t> const& token_ids, bool skip_special_tokens) const override
    {
        std::string bytes;
        for (int64_t const id : token_ids)
        {
            if (!skip_special_tokens || !is_special(id))
            {
                bytes += file_.vocabulary.bytes(id);
            }
        }
        std::string result;
        text::append_text(result, bytes);
        return result;
    }

    std::unique_ptr<Detokenizer> detokenizer() const override;

    std::optional<int64_t> special_token_id(std::string_view text) const override
    {
        AddedToken const* const found = special_.of_content(text);
        return found == nullptr ? std::nullopt : std::optional<int64_t>(found->id);
    }

    size_t size() const override
    {
        return file_.vocabulary.size();
    }

    // The bytes that a token adds to a text.
    std::string_view shown_bytes(int64_t id) const
    {
        return is_special(id) ? std::string_view() : file_.vocabulary.bytes(id);
    }

private:
    bool is_special(int64_t id) const
    {
        return file_.vocabulary.has(id) && is_special_[static_cast<size_t>(id)];
    }

    // Encoding what is no text, or cannot fit, would take time and memory for nothing.
    void check(std::string_view text, std::optional<size_t> most_tokens) const
    {
        size_t bad = 0;
        if (!json::is_utf8(text, bad))
        {
            throw GenerationError("text must be UTF-8, byte " + std::to_string(bad) + " is not");
        }
        if (!most_tokens || text.size() <= *most_tokens)
        {
            return;
        }
        size_t const most = *most_tokens * file_.longest_token * kNormalized;
        if (text.size() > most)
        {
            throw GenerationError("the text has " + std::to_string(text.size()) + " bytes; the engine's capacity of "
                + std::to_string(*most_tokens) + " tokens holds at most " + std::to_string(most)
                + "; shorten it, or build an engine of larger capacity");
        }
    }

    // Without a look at added tokens.
    void encode_words(std::string_view text, std::vector<int64_t>& ids) const
    {
        std::string normal;
        if (file_.normalizes && !text::is_surely_nfc(text))
        {
            normal = text::nfc(text);
            text = normal;
        }
        for (size_t at = 0; at < text.size();)
        {
            size_t const end = text::word_end(text, at);
            file_.merges.encode(text.substr(at, end - at), ids);
            at = end;
        }
    }

    // Each piece between added tokens is normalized by itself, as tokenizers does.
    void encode_with_added(std::string_view text, std::vector<int64_t>& ids) const
    {
        size_t start = 0;
        size_t at = 0;
        while (auto const found = file_.added.find(text, at))
        {
            at = found->start + found->token->content.size();
            if (file_.split_special_tokens && found->token->special)
            {
                continue; // part of the text around it
            }
            encode_words(text.substr(start, found->start - start), ids);
            ids.push_back(found->token->id);
            start = at;
        }
        encode_words(text.substr(start), ids);
    }

    static void check_spans(std::string_view text, std::vector<Span> const& spans)
    {
        size_t done = 0;
        for (Span const& each : spans)
        {
            auto const within = [&text](size_t at) { return at < text.size() && (text[at] & 0xc0) == 0x80; };
            if (each.start < done || each.end < each.start || each.end > text.size() || within(each.start) || within(each.end))
            {
                throw GenerationError("given: the span " + std::to_string(each.start) + " to " + std::to_string(each.end)
                    + " must be of whole characters of the text's " + std::to_string(text.size()) + " bytes, and after the one before");
            }
            done = each.end;
        }
    }

    // Cut where the texts of tokens are within spans, as encode_text and encode_sanitized of runtime/control_tokens.py:
    // these pieces stay text, in the others added tokens are found.
    void encode_apart(std::string_view text, text::AddedTokens const& tokens, std::vector<Span> const& spans,
        std::vector<int64_t>& ids) const
    {
        size_t done = 0;
        for (Span const& span : spans)
        {
            size_t at = span.start;
            while (auto const found = tokens.find(text.substr(0, span.end), at))
            {
                encode_with_added(text.substr(done, found->start - done), ids);
                at = found->start + found->token->content.size();
                encode_words(text.substr(found->start, at - found->start), ids);
                done = at;
            }
        }
        encode_with_added(text.substr(done), ids);
    }

    TokenizerFile file_;
    text::AddedTokens special_;
    std::vector<bool> is_special_; // by id
};

class ByteDetokenizer : public Detokenizer
{
public:
    explicit ByteDetokenizer(BytePairTokenizer const& tokenizer)
        : tokenizer_(tokenizer)
    {
    }

    std::string feed(int64_t token) override
    {
        pending_ += tokenizer_.shown_bytes(token);
        std::string shown;
        pending_.erase(0, text::append_text(shown, pending_, true));
        return shown;
    }

    std::string flush() override
    {
        std::string rest;
        text::append_text(rest, pending_);
        pending_.clear();
        return rest;
    }

private:
    BytePairTokenizer const& tokenizer_;
    std::string pending_; // bytes of what may yet become another character
};

std::unique_ptr<Detokenizer> BytePairTokenizer::detokenizer() const
{
    return std::make_unique<ByteDetokenizer>(*this);
}

} // namespace

std::unique_ptr<Tokenizer> read_tokenizer(std::string const& folder)
{
    return std::make_unique<BytePairTokenizer>(text::read_tokenizer_files(folder));
}

std::unique_ptr<Tokenizer> open_tokenizer(Package const& package)
{
    if (!package.has(text::kTokenizerFile))
    {
        return nullptr;
    }
    std::unique_ptr<Tokenizer> tokenizer = read_tokenizer(package.folder);
    auto const vocab_size = static_cast<size_t>(package.manifest.engine.vocab_size);
    if (tokenizer->size() > vocab_size)
    {
        throw ConfigError(package.path(text::kTokenizerFile) + ": has token ids up to " + std::to_string(tokenizer->size() - 1)
            + ", the engine's vocabulary has " + std::to_string(vocab_size) + "; the tokenizer belongs to another model");
    }
    return tokenizer;
}

} // namespace q2export::runtime
