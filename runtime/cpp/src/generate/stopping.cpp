#include "stopping.h"

#include <algorithm>
#include <utility>

namespace q2export::runtime
{

std::string StopStrings::feed(std::string const& piece)
{
    std::string text = std::exchange(held_, "") + piece;
    size_t best_end = std::string::npos;
    size_t best_start = 0;
    for (std::string const& stop : stops_)
    {
        size_t const start = text.find(stop);
        if (start == std::string::npos)
        {
            continue;
        }
        size_t const end = start + stop.size();
        if (end < best_end || (end == best_end && start < best_start))
        {
            best_end = end;
            best_start = start;
            matched_ = stop;
        }
    }
    if (matched_)
    {
        return text.substr(0, best_start);
    }
    size_t const certain = text.size() - undecided(text);
    held_ = text.substr(certain);
    text.resize(certain);
    return text;
}

std::string StopStrings::flush()
{
    return std::exchange(held_, "");
}

// Length of the longest end of the text that begins one of the stop strings.
size_t StopStrings::undecided(std::string const& text) const
{
    size_t longest = 0;
    for (std::string const& stop : stops_)
    {
        for (size_t length = std::min(stop.size() - 1, text.size()); length > longest; --length)
        {
            if (text.compare(text.size() - length, length, stop, 0, length) == 0)
            {
                longest = length;
            }
        }
    }
    return longest;
}

} // namespace q2export::runtime
