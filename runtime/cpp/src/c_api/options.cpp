#include "c_api/handles.h"

using namespace q2export::runtime;

namespace
{

q2e_status set(q2e_options* options, char const* name, OptionValue value, q2e_error** error)
{
    return guarded(error, [&] {
        require(options, "options");
        require(name, "name");
        options->given.set(name, std::move(value));
        return Q2E_OK;
    });
}

// An array of the caller's as a vector; NULL is fine where it is empty.
template <typename T>
std::vector<T> copied(T const* values, size_t count)
{
    return values == nullptr ? std::vector<T>() : std::vector<T>(values, values + count);
}

} // namespace

q2e_status q2e_options_create(q2e_options** options, q2e_error** error)
{
    return guarded(error, [&] {
        require(options, "options");
        *options = new q2e_options;
        return Q2E_OK;
    });
}

q2e_status q2e_options_set_integer(q2e_options* options, char const* name, int64_t value, q2e_error** error)
{
    return set(options, name, value, error);
}

q2e_status q2e_options_set_number(q2e_options* options, char const* name, double value, q2e_error** error)
{
    return set(options, name, value, error);
}

q2e_status q2e_options_set_flag(q2e_options* options, char const* name, int value, q2e_error** error)
{
    return set(options, name, value != 0, error);
}

q2e_status q2e_options_set_seeds(
    q2e_options* options, char const* name, uint64_t const* values, size_t count, q2e_error** error)
{
    return guarded(error, [&] { return set(options, name, copied(values, count), error); });
}

q2e_status q2e_options_set_strings(
    q2e_options* options, char const* name, char const* const* values, size_t count, q2e_error** error)
{
    return guarded(error, [&] {
        std::vector<std::string> strings;
        for (char const* const each : copied(values, count))
        {
            require(each, "a string");
            strings.emplace_back(each);
        }
        return set(options, name, std::move(strings), error);
    });
}

q2e_status q2e_options_set_biases(q2e_options* options, char const* name, int64_t const* token_ids, double const* biases,
    size_t count, q2e_error** error)
{
    return guarded(error, [&] {
        if (count > 0)
        {
            require(token_ids, "token_ids");
            require(biases, "biases");
        }
        std::map<int64_t, double> all;
        for (size_t i = 0; i < count; ++i)
        {
            all[token_ids[i]] = biases[i];
        }
        return set(options, name, std::move(all), error);
    });
}

void q2e_options_release(q2e_options* options)
{
    delete options;
}
