// tokenizer_config.json, which must agree with tokenizer.json (runtime/tokenizer.py, tokenizer_rules.py).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace q2export::runtime::text
{

// Read and check it; a file that is absent says nothing. Returns whether special tokens in a text are text
// (`split_special_tokens`). Throws ConfigError, naming the file and the field.
bool read_tokenizer_config(
    std::string const& path, std::function<std::optional<int64_t>(std::string_view)> const& id_of_token);

} // namespace q2export::runtime::text
