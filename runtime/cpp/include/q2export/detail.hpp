// What q2export.hpp is made with: errors of the C ABI as exceptions, handles that release themselves.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "q2export/generation_options.hpp"
#include "q2export/q2export.h"

namespace q2export
{

/// What every function of q2export.hpp throws: the status, and a message that says what to do.
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

namespace detail
{

/// Throws unless the status is a success; releases the error.
inline q2e_status check(q2e_status status, q2e_error* error)
{
    std::unique_ptr<q2e_error, decltype(&q2e_error_release)> const held(error, &q2e_error_release);
    if (status == Q2E_OK || status == Q2E_END || status == Q2E_TIMEOUT)
    {
        return status;
    }
    throw Error(status, error == nullptr ? "out of memory" : q2e_error_message(error));
}

template <typename T>
using Handle = std::unique_ptr<T, void (*)(T*)>;

/// An options handle that holds what is set.
class OptionsHandle
{
public:
    explicit OptionsHandle(GenerationOptions const& options)
        : handle_(create(), &q2e_options_release)
    {
        options.visit([this](char const* name, auto const& value) { set(name, value); });
    }

    q2e_options* get() const
    {
        return handle_.get();
    }

private:
    static q2e_options* create()
    {
        q2e_options* handle = nullptr;
        q2e_error* error = nullptr;
        q2e_status const status = q2e_options_create(&handle, &error);
        check(status, error);
        return handle;
    }

    template <typename Set, typename... Values>
    void call(Set set, char const* name, Values... values)
    {
        q2e_error* error = nullptr;
        q2e_status const status = set(handle_.get(), name, values..., &error);
        check(status, error);
    }

    void set(char const* name, std::optional<int64_t> const& value)
    {
        if (value)
        {
            call(&q2e_options_set_integer, name, *value);
        }
    }

    void set(char const* name, std::optional<double> const& value)
    {
        if (value)
        {
            call(&q2e_options_set_number, name, *value);
        }
    }

    void set(char const* name, std::optional<bool> const& value)
    {
        if (value)
        {
            call(&q2e_options_set_flag, name, *value ? 1 : 0);
        }
    }

    void set(char const* name, std::vector<uint64_t> const& values)
    {
        if (!values.empty())
        {
            call(&q2e_options_set_seeds, name, values.data(), values.size());
        }
    }

    void set(char const* name, std::vector<std::string> const& values)
    {
        if (!values.empty())
        {
            std::vector<char const*> texts;
            for (std::string const& each : values)
            {
                texts.push_back(each.c_str());
            }
            call(&q2e_options_set_strings, name, texts.data(), texts.size());
        }
    }

    void set(char const* name, std::map<int64_t, double> const& values)
    {
        if (!values.empty())
        {
            std::vector<int64_t> ids;
            std::vector<double> biases;
            for (auto const& [id, bias] : values)
            {
                ids.push_back(id);
                biases.push_back(bias);
            }
            call(&q2e_options_set_biases, name, ids.data(), biases.data(), ids.size());
        }
    }

    Handle<q2e_options> handle_;
};

inline q2e_prompt prompt_of(std::vector<int64_t> const& token_ids)
{
    return {sizeof(q2e_prompt), token_ids.data(), token_ids.size()};
}

} // namespace detail

} // namespace q2export
