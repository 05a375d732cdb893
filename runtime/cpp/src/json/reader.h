// JSON read piece by piece, for what is too large to keep as values.
#pragma once

#include <string>
#include <string_view>
#include <unordered_set>

#include "json.h"

namespace q2export::runtime::json
{

// Every function throws ParseError where the text is not JSON as json.h wants it.
class Reader
{
public:
    // The text outlives the reader and the views it returns.
    explicit Reader(std::string_view text);

    // The value that begins here; depth is that of what it is in.
    Value value(size_t depth);

    // The string that begins here: a view of the text, or of `scratch` where it has escapes.
    std::string_view string(std::string& scratch);

    // Call `member(key)` for every member of the object that begins here; it must read the value. A key that is given
    // twice is not noticed. The key is valid during the call.
    template <typename Member>
    void members(Member const& member)
    {
        std::string scratch;
        sequence('{', '}', [&] {
            std::string_view const key = string(scratch);
            skip_space();
            expect(':');
            skip_space();
            member(key);
        });
    }

    // Call `element()` for every element of the array that begins here; it must read it.
    template <typename Element>
    void elements(Element const& element)
    {
        sequence('[', ']', element);
    }

    // The next character that is no space; 0 at the end.
    char next();

    // Refuse what comes after the value.
    void finish();

    // Throw ParseError, with the place.
    [[noreturn]] void refuse(std::string const& what) const;

    // Refuse a key that is in the object; `keys` is empty at first.
    void check_new(Object const& object, std::unordered_set<std::string>& keys, std::string const& key) const;

private:
    template <typename Item>
    void sequence(char open, char close, Item const& item)
    {
        skip_space();
        expect(open);
        if (next() == close)
        {
            ++at_;
            return;
        }
        while (true)
        {
            skip_space();
            item();
            if (next() != ',')
            {
                expect(close);
                return;
            }
            ++at_;
        }
    }

    void skip_space();
    char peek() const;
    void expect(char wanted);
    bool take(std::string_view word);
    Value word();
    Object object(size_t depth);
    Array array(size_t depth);
    void escape(std::string& result);
    uint32_t unit();
    size_t digits();
    Value number();
    Value integer(size_t start, size_t digits) const;
    Value real(size_t start) const;

    std::string_view text_;
    size_t at_ = 0;
};

} // namespace q2export::runtime::json
