// Encodes and decodes in C++ what tests ask for, under sanitizers.
//
//   tokenizers FOLDER        lines of stdin, each answered with one: "e TEXT", "t TEXT" (special tokens as text),
//                            "g TEXT START END ..." (spans given), "d IDS", "k IDS" (special tokens kept) and "s IDS" (as they come), bytes in hexadecimal
//   tokenizers open          a folder per line: prints "ok", or status and message
//   tokenizers fuzz N FOLDER SCRATCH  N mutations of the folder's tokenizer.json, written to SCRATCH, read and used
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>
#include <sstream>
#include <string>

#include "error.h"
#include "text/tokenizer.h"

using namespace q2export::runtime;

namespace
{

std::string bytes_of(std::string const& digits)
{
    std::string bytes;
    for (size_t i = 0; i + 1 < digits.size(); i += 2)
    {
        bytes += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
    }
    return bytes;
}

std::string digits_of(std::string const& bytes)
{
    constexpr char kDigits[] = "0123456789abcdef";
    std::string digits;
    for (char const each : bytes)
    {
        auto const byte = static_cast<unsigned char>(each);
        digits += {kDigits[byte >> 4], kDigits[byte & 15]};
    }
    return digits;
}

std::string streamed(Tokenizer const& tokenizer, std::vector<int64_t> const& ids)
{
    std::unique_ptr<Detokenizer> const detokenizer = tokenizer.detokenizer();
    std::string answer;
    for (int64_t const id : ids)
    {
        answer += digits_of(detokenizer->feed(id)) + ",";
    }
    return answer + digits_of(detokenizer->flush());
}

std::string answered(Tokenizer const& tokenizer, char kind, std::string const& rest)
{
    std::istringstream words(rest);
    if (kind == 'e' || kind == 't' || kind == 'g')
    {
        std::string digits;
        words >> digits;
        EncodeOptions options{true, kind == 't', std::nullopt, {}};
        for (Span span; words >> span.start >> span.end;)
        {
            options.given.push_back(span);
        }
        std::string answer;
        for (int64_t const id : tokenizer.encode(bytes_of(digits), options))
        {
            answer += (answer.empty() ? "" : " ") + std::to_string(id);
        }
        return answer;
    }
    std::vector<int64_t> const ids{std::istream_iterator<int64_t>(words), {}};
    return kind == 's' ? streamed(tokenizer, ids) : digits_of(tokenizer.decode(ids, kind == 'd'));
}

template <typename Function>
std::string guarded(Function const& function)
{
    try
    {
        return function();
    }
    catch (Error const& problem)
    {
        std::string message = std::to_string(problem.status()) + " " + problem.what();
        for (char& each : message)
        {
            each = each == '\n' ? ' ' : each;
        }
        return message;
    }
}

int open_all()
{
    for (std::string folder; std::getline(std::cin, folder);)
    {
        std::cout << guarded([&] {
            read_tokenizer(folder);
            return std::string("ok");
        }) << '\n';
    }
    return EXIT_SUCCESS;
}

int fuzz(int count, std::string const& folder, std::string const& scratch)
{
    std::ifstream file(folder + "/tokenizer.json", std::ios::binary);
    std::string const original{std::istreambuf_iterator<char>(file), {}};
    std::mt19937 random(1);
    int taken = 0;
    for (int i = 0; i < count; ++i)
    {
        std::string text = original;
        // Half of the edits where the small fields are.
        size_t const at = random() % (i % 2 == 0 ? text.size() : std::min<size_t>(text.size(), 2500));
        switch (random() % 4)
        {
        case 0: text[at] = static_cast<char>(random()); break;
        case 1: text.erase(at, random() % 9); break;
        case 2: text.insert(at, text.substr(random() % text.size(), random() % 40)); break;
        default: text[at] = "0123456789\"{}[],:\\"[random() % 18]; break;
        }
        std::ofstream(scratch + "/tokenizer.json", std::ios::binary) << text;
        taken += guarded([&] {
            std::unique_ptr<Tokenizer> const tokenizer = read_tokenizer(scratch);
            std::string const line = "Hello,  w\xc3\xb6rld\n 12 <|im_end|>e\xcc\x81";
            return tokenizer->decode(tokenizer->encode(line, {}), false).empty() ? "5" : "ok";
        }) == "ok" ? 1 : 0;
    }
    std::cout << taken << " of " << count << " were taken\n";
    return EXIT_SUCCESS;
}

} // namespace

int main(int count, char** words)
{
    std::ios::sync_with_stdio(false);
    std::string const first = count > 1 ? words[1] : "";
    if (first == "open")
    {
        return open_all();
    }
    if (first == "fuzz" && count == 5)
    {
        return fuzz(std::atoi(words[2]), words[3], words[4]);
    }
    std::unique_ptr<Tokenizer> const tokenizer = read_tokenizer(first);
    for (std::string line; std::getline(std::cin, line);)
    {
        std::cout << guarded([&] { return answered(*tokenizer, line[0], line.substr(2)); }) << '\n';
    }
    return EXIT_SUCCESS;
}
