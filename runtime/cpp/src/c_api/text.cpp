#include "c_api/handles.h"
#include "text/tokenizer.h"

using namespace q2export::runtime;

struct q2e_tokenizer
{
    std::shared_ptr<Tokenizer const> tokenizer;
};

struct q2e_detokenizer
{
    std::shared_ptr<Tokenizer const> tokenizer;
    std::unique_ptr<Detokenizer> detokenizer;
    std::string text; // given last
};

struct q2e_tokens
{
    std::vector<int64_t> ids;
};

struct q2e_text
{
    std::string text;
};

namespace
{

Tokenizer const& of(q2e_tokenizer const* tokenizer)
{
    require(tokenizer, "tokenizer");
    return *tokenizer->tokenizer;
}

void give(q2e_detokenizer& from, std::string made, char const** text, size_t* text_bytes)
{
    from.text = std::move(made);
    *text = from.text.c_str();
    *text_bytes = from.text.size();
}

} // namespace

q2e_status q2e_tokenizer_open(char const* folder, q2e_tokenizer** tokenizer, q2e_error** error)
{
    return guarded(error, [&] {
        require(folder, "folder");
        require(tokenizer, "tokenizer");
        *tokenizer = new q2e_tokenizer{read_tokenizer(folder)};
        return Q2E_OK;
    });
}

q2e_status q2e_engine_get_tokenizer(q2e_engine const* engine, q2e_tokenizer** tokenizer, q2e_error** error)
{
    return guarded(error, [&] {
        require(engine, "engine");
        require(tokenizer, "tokenizer");
        std::shared_ptr<Tokenizer const> const& found = engine->core->tokenizer();
        if (found == nullptr)
        {
            throw Error(Q2E_CONFIG_ERROR, engine->core->name() + " has no tokenizer.json; use token ids");
        }
        *tokenizer = new q2e_tokenizer{found};
        return Q2E_OK;
    });
}

void q2e_tokenizer_release(q2e_tokenizer* tokenizer)
{
    delete tokenizer;
}

q2e_status q2e_encode(q2e_tokenizer const* tokenizer, char const* text, size_t text_bytes,
    q2e_encode_options const* options, q2e_tokens** tokens, q2e_error** error)
{
    return guarded(error, [&] {
        Tokenizer const& tool = of(tokenizer);
        require(tokens, "tokens");
        if (text_bytes != 0)
        {
            require(text, "text");
        }
        EncodeOptions given;
        if (options != nullptr)
        {
            q2e_encode_options const asked = copy_in(options);
            given.add_special_tokens = asked.no_special_tokens_around == 0;
            given.special_tokens_as_text = asked.special_tokens_as_text != 0;
            if (asked.given_count != 0)
            {
                require(asked.given, "options->given");
            }
            for (size_t i = 0; i < asked.given_count; ++i)
            {
                given.given.push_back({asked.given[i].start, asked.given[i].end});
            }
            if (asked.most_tokens != 0)
            {
                given.most_tokens = asked.most_tokens;
            }
        }
        *tokens = new q2e_tokens{tool.encode({text_bytes == 0 ? "" : text, text_bytes}, given)};
        return Q2E_OK;
    });
}

size_t q2e_tokens_count(q2e_tokens const* tokens)
{
    return tokens == nullptr ? 0 : tokens->ids.size();
}

int64_t const* q2e_tokens_ids(q2e_tokens const* tokens)
{
    return tokens == nullptr ? nullptr : tokens->ids.data();
}

void q2e_tokens_release(q2e_tokens* tokens)
{
    delete tokens;
}

q2e_status q2e_decode(q2e_tokenizer const* tokenizer, int64_t const* token_ids, size_t token_count,
    int keep_special_tokens, q2e_text** text, q2e_error** error)
{
    return guarded(error, [&] {
        Tokenizer const& tool = of(tokenizer);
        require(text, "text");
        q2e_prompt const ids{sizeof(q2e_prompt), token_ids, token_count};
        *text = new q2e_text{tool.decode(token_ids_of(&ids), keep_special_tokens == 0)};
        return Q2E_OK;
    });
}

char const* q2e_text_data(q2e_text const* text)
{
    return text == nullptr ? "" : text->text.c_str();
}

size_t q2e_text_bytes(q2e_text const* text)
{
    return text == nullptr ? 0 : text->text.size();
}

void q2e_text_release(q2e_text* text)
{
    delete text;
}

q2e_status q2e_detokenizer_create(q2e_tokenizer const* tokenizer, q2e_detokenizer** detokenizer, q2e_error** error)
{
    return guarded(error, [&] {
        Tokenizer const& tool = of(tokenizer);
        require(detokenizer, "detokenizer");
        *detokenizer = new q2e_detokenizer{tokenizer->tokenizer, tool.detokenizer(), ""};
        return Q2E_OK;
    });
}

q2e_status q2e_detokenizer_feed(
    q2e_detokenizer* detokenizer, int64_t token_id, char const** text, size_t* text_bytes, q2e_error** error)
{
    return guarded(error, [&] {
        require(detokenizer, "detokenizer");
        require(text, "text");
        require(text_bytes, "text_bytes");
        give(*detokenizer, detokenizer->detokenizer->feed(token_id), text, text_bytes);
        return Q2E_OK;
    });
}

q2e_status q2e_detokenizer_flush(q2e_detokenizer* detokenizer, char const** text, size_t* text_bytes, q2e_error** error)
{
    return guarded(error, [&] {
        require(detokenizer, "detokenizer");
        require(text, "text");
        require(text_bytes, "text_bytes");
        give(*detokenizer, detokenizer->detokenizer->flush(), text, text_bytes);
        return Q2E_OK;
    });
}

void q2e_detokenizer_release(q2e_detokenizer* detokenizer)
{
    delete detokenizer;
}
