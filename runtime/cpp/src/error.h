// What goes wrong: a status and one message that says where, what was expected, what was found and what to do.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

#include "q2export/q2export.h"

namespace q2export::runtime
{

class Error : public std::runtime_error
{
public:
    Error(q2e_status status, std::string const& message)
        : std::runtime_error(message)
        , status_(status)
    {
    }

    q2e_status status() const
    {
        return status_;
    }

private:
    q2e_status status_;
};

struct PackageError : Error
{
    explicit PackageError(std::string const& message)
        : Error(Q2E_PACKAGE_ERROR, message)
    {
    }
};

struct ConfigError : Error
{
    explicit ConfigError(std::string const& message)
        : Error(Q2E_CONFIG_ERROR, message)
    {
    }
};

struct GenerationError : Error
{
    explicit GenerationError(std::string const& message)
        : Error(Q2E_GENERATION_ERROR, message)
    {
    }
};

// Of an untrusted text: quoted, cut to a length fit for a message, control characters escaped.
std::string shown(std::string_view text);

} // namespace q2export::runtime
