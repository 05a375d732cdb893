// The pre-tokenizer of Qwen2: its regular expression, written out.
#pragma once

#include <cstddef>
#include <string_view>

namespace q2export::runtime::text
{

// As tokenizer.json of every Qwen2 model has it.
constexpr std::string_view kWordPattern
    = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// Where the word ends that begins at `at`, which is not the end: the first alternative of the pattern that matches.
// Text is valid UTF-8; words follow each other without gaps.
size_t word_end(std::string_view text, size_t at);

} // namespace q2export::runtime::text
