// What a tokenizer.json may say: what Python's runtime refuses (runtime/tokenizer_rules.py) is refused in its words, and
// so is what is not implemented here.
#pragma once

#include <cstdint>
#include <vector>

#include "json/json.h"
#include "text/added_tokens.h"

namespace q2export::runtime::text
{

// Every function throws ConfigError, naming the field; an absent component is null.

// Everything but what the others read; `vocab` and `merges` of the model are null where they are of the right kind.
void check_rules(json::Value const& file, json::Value const& model);

// Whether texts are normalized, which is to NFC.
bool is_nfc(json::Value const* normalizer);

// The token ids that the post-processor puts around a text.
void tokens_around(json::Value const* post_processor, std::vector<int64_t>& before, std::vector<int64_t>& after);

// In the order of the file.
std::vector<AddedToken> added_tokens(json::Value const* list);

} // namespace q2export::runtime::text
