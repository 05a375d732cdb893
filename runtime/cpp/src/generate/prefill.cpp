#include "prefill.h"

#include <algorithm>
#include <cstdint>
#include <set>

#include "contract.h"

namespace q2export::runtime
{
namespace
{

size_t padding_of(std::vector<size_t> const& lengths, size_t rows, size_t width)
{
    size_t padding = 0;
    for (size_t row = 0; row < rows; ++row)
    {
        padding += width > lengths[row] ? width - lengths[row] : 0;
    }
    return padding;
}

} // namespace

std::vector<PrefillCall> plan_prefill(std::vector<size_t> const& lengths, size_t chunk)
{
    std::vector<PrefillCall> calls;
    for (size_t near = 0; near < lengths[0];)
    {
        auto const has_more = [near](size_t length) { return length > near; };
        auto const rows = static_cast<size_t>(std::count_if(lengths.begin(), lengths.end(), has_more));
        size_t const widest = std::min(near + chunk, lengths[0]);
        size_t far = std::min(lengths[rows - 1], widest); // without padding
        std::set<size_t> wider{widest};
        for (size_t row = 0; row < rows; ++row)
        {
            if (far < lengths[row] && lengths[row] < widest)
            {
                wider.insert(lengths[row]);
            }
        }
        for (size_t const width : wider)
        {
            far = padding_of(lengths, rows, width) <= static_cast<size_t>(kPrefillCallTokens) ? width : far;
        }
        calls.push_back({rows, far, near});
        near = far;
    }
    std::reverse(calls.begin(), calls.end());
    return calls;
}

} // namespace q2export::runtime
