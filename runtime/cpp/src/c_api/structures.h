// Structures that callers allocate, of whichever version of q2export.h they were compiled with: each begins with its size.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>

#include "error.h"
#include "q2export/q2export.h"

namespace q2export::runtime
{

// The size that a structure had in version 1 of the ABI, which ended with this member; what is added comes behind it.
template <typename T>
struct First;

#define Q2E_FIRST(type, last)                                                                                          \
    template <>                                                                                                        \
    struct First<type>                                                                                                 \
    {                                                                                                                  \
        static constexpr char const* name = #type;                                                                     \
        static constexpr size_t size = offsetof(type, last) + sizeof(type::last);                                      \
    }
Q2E_FIRST(q2e_open_options, ops_library);
Q2E_FIRST(q2e_engine_info, has_kernels);
Q2E_FIRST(q2e_prompt, token_count);
Q2E_FIRST(q2e_event, top_logprobs);
Q2E_FIRST(q2e_result, top_logprobs);
Q2E_FIRST(q2e_scheduler_options, max_waiting);
Q2E_FIRST(q2e_encode_options, given_count);
#undef Q2E_FIRST

// Refuse a null pointer, and a structure that does not say its size. Throws Error.
template <typename T>
void check_size(T const* given)
{
    std::string const name = First<T>::name;
    if (given == nullptr)
    {
        throw Error(Q2E_ARGUMENT_ERROR, name + " must not be NULL");
    }
    if (given->size < First<T>::size)
    {
        throw Error(Q2E_ARGUMENT_ERROR, name + ".size must be sizeof(" + name + "), found " + std::to_string(given->size));
    }
}

// A caller's structure; what its version does not have is 0. Throws Error.
template <typename T>
T copy_in(T const* given)
{
    check_size(given);
    T result{};
    std::memcpy(&result, given, std::min(given->size, sizeof(T)));
    return result;
}

// Fill a caller's structure, as far as its version goes, and keep its size.
template <typename T>
void copy_out(T const& from, T* to)
{
    size_t const size = to->size;
    std::memcpy(to, &from, std::min(size, sizeof(T)));
    to->size = size;
}

} // namespace q2export::runtime
