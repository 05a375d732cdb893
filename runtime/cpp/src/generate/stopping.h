// When a text ends: stop strings, found wherever the token borders lie (runtime/stopping.py).
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace q2export::runtime
{

// Watches a text that comes in pieces: the stop string that ends first wins, and of several that end there the longest.
class StopStrings
{
public:
    explicit StopStrings(std::vector<std::string> stops)
        : stops_(std::move(stops))
    {
    }

    // Take the next piece; the text that is now certain to come before any stop string.
    std::string feed(std::string const& piece);

    // The text still held back, at the end.
    std::string flush();

    // The stop string found, once there is one.
    std::optional<std::string> const& matched() const
    {
        return matched_;
    }

private:
    size_t undecided(std::string const& text) const;

    std::vector<std::string> stops_;
    std::string held_;
    std::optional<std::string> matched_;
};

} // namespace q2export::runtime
