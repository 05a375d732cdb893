// Continue a prompt of token ids:  generate PACKAGE [--seed N] [--max-new-tokens N] [--temperature T] ID...
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "q2export/q2export.hpp"

namespace
{

struct Arguments
{
    std::string package;
    q2export::GenerationOptions options;
    std::vector<int64_t> prompt;
};

Arguments parse(std::vector<std::string> const& words)
{
    Arguments arguments;
    for (size_t i = 0; i < words.size(); ++i)
    {
        bool const has_value = i + 1 < words.size();
        if (words[i] == "--seed" && has_value)
        {
            arguments.options.seed = {std::stoull(words[++i])};
        }
        else if (words[i] == "--max-new-tokens" && has_value)
        {
            arguments.options.max_new_tokens = std::stoll(words[++i]);
        }
        else if (words[i] == "--temperature" && has_value)
        {
            arguments.options.temperature = std::stod(words[++i]);
        }
        else if (arguments.package.empty())
        {
            arguments.package = words[i];
        }
        else
        {
            arguments.prompt.push_back(std::stoll(words[i]));
        }
    }
    return arguments;
}

} // namespace

int main(int count, char** words)
{
    try
    {
        Arguments const arguments = parse({words + 1, words + count});
        q2export::Engine const engine(arguments.package);
        std::cerr << engine.warnings();
        q2export::Stream stream = engine.stream(arguments.prompt, arguments.options);
        while (auto const event = stream.next())
        {
            std::cout << event->token_id << ' ' << std::flush;
        }
        std::cout << '\n';
        std::cerr << stream.result().time_to_first_token * 1e3 << " ms to the first token\n";
    }
    catch (std::exception const& problem)
    {
        std::cerr << "error: " << problem.what() << '\n';
        return EXIT_FAILURE;
    }
}
