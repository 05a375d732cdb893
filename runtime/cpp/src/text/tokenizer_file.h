// The files of a tokenizer: read, and refused where a text would be encoded otherwise than tokenizers encodes it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "text/added_tokens.h"
#include "text/merges.h"
#include "text/vocabulary.h"

namespace q2export::runtime::text
{

constexpr char kTokenizerFile[] = "tokenizer.json";
constexpr char kTokenizerConfigFile[] = "tokenizer_config.json";

// A tokenizer as Qwen2 has it: NFC or nothing, its words, merges of bytes.
struct TokenizerFile
{
    Vocabulary vocabulary; // with the added tokens
    Merges merges;
    AddedTokens added;
    bool normalizes = false;     // to NFC
    std::vector<int64_t> before; // token ids that are put around a text
    std::vector<int64_t> after;
    size_t longest_token = 1;    // in bytes
    bool split_special_tokens = false; // special tokens in a text are text
};

// tokenizer.json of a folder, and tokenizer_config.json where there is one. Throws ConfigError, naming file and field.
TokenizerFile read_tokenizer_files(std::string const& folder);

} // namespace q2export::runtime::text
