// The defaults of generation: generation_config.json, or config.json where there is none.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "generate/options.h"
#include "package/package.h"

namespace q2export::runtime
{

// What holds where the caller says nothing.
struct GenerationDefaults
{
    GenerationOptions options;
    std::vector<int64_t> eos_token_ids;
    std::string warnings; // fields that would change the text and are not implemented, one per line
};

// Read the fields that are implemented, as runtime/generation_config.py does; null counts as absent.
// Throws ConfigError: a file is malformed, a field has a wrong type or value, or an id is outside the vocabulary.
GenerationDefaults read_generation_defaults(Package const& package);

} // namespace q2export::runtime
