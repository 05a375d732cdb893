// Many threads on one engine for some seconds: generate, stream, cancel, a scheduler with its worker, close while all of
// that runs. Under the thread sanitizer, or none. Every text must be the one that the engine gives alone.
//
//   threads PACKAGE SECONDS THREADS
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <map>
#include <random>
#include <thread>

#include "q2export/q2export.hpp"

namespace
{

using Clock = std::chrono::steady_clock;
constexpr int kPrompts = 6;

std::vector<int64_t> prompt_of(int number)
{
    std::mt19937 random(static_cast<unsigned int>(number));
    std::vector<int64_t> ids(1 + random() % 40);
    for (int64_t& id : ids)
    {
        id = random() % 1500;
    }
    return ids;
}

q2export::GenerationOptions options_of(int number)
{
    q2export::GenerationOptions options;
    options.max_new_tokens = 3 + number;
    options.seed = {static_cast<uint64_t>(number)};
    options.temperature = 0.9;
    return options;
}

struct Shared
{
    q2export::Engine const& engine;
    q2export::Scheduler const& scheduler;
    std::vector<std::vector<int64_t>> expected;
    std::atomic<bool> over{false};
    std::atomic<long> texts{0};
    std::atomic<long> cancelled{0};
    std::atomic<long> wrong{0};
};

void hold(Shared& shared, std::vector<int64_t> const& found, int number)
{
    shared.wrong += found == shared.expected[static_cast<size_t>(number)] ? 0 : 1;
    ++shared.texts;
}

void pull(Shared& shared, q2export::Stream& stream, int number, bool cancels)
{
    std::thread canceller;
    if (cancels)
    {
        canceller = std::thread([&stream] { stream.cancel(); });
    }
    try
    {
        std::vector<int64_t> found;
        while (auto const event = stream.next())
        {
            found.push_back(event->token_id);
        }
        hold(shared, found, number);
    }
    catch (q2export::Error const& problem)
    {
        if (canceller.joinable())
        {
            canceller.join();
        }
        if (problem.status() != Q2E_CANCELLED)
        {
            throw;
        }
        ++shared.cancelled;
    }
    if (canceller.joinable())
    {
        canceller.join();
    }
}

void work(Shared& shared, unsigned int seed)
{
    std::mt19937 random(seed);
    while (!shared.over)
    {
        int const number = static_cast<int>(random() % kPrompts);
        try
        {
            unsigned int const kind = random() % 3;
            if (kind == 0)
            {
                hold(shared, shared.engine.generate(prompt_of(number), options_of(number)).token_ids, number);
                continue;
            }
            q2export::Stream stream = kind == 1 ? shared.engine.stream(prompt_of(number), options_of(number))
                                                : shared.scheduler.submit(prompt_of(number), options_of(number));
            pull(shared, stream, number, random() % 4 == 0);
        }
        catch (q2export::Error const& problem)
        {
            if (problem.status() == Q2E_CLOSED_ERROR)
            {
                return;
            }
            std::cerr << "error: " << problem.what() << '\n';
            ++shared.wrong;
        }
    }
}

} // namespace

int main(int count, char** words)
{
    if (count != 4)
    {
        return 2;
    }
    q2export::Engine::OpenOptions one;
    one.threads = 1;
    q2export::Engine const engine(words[1], one);
    q2export::Scheduler const scheduler(engine, 4, 200);
    Shared shared{engine, scheduler, {}};
    for (int number = 0; number < kPrompts; ++number)
    {
        shared.expected.push_back(engine.generate(prompt_of(number), options_of(number)).token_ids);
    }
    std::thread stepper([&scheduler] {
        try
        {
            while (true)
            {
                scheduler.step();
            }
        }
        catch (q2export::Error const&)
        {
            scheduler.close(); // the engine was closed: let nobody wait for it
        }
    });
    std::vector<std::thread> threads;
    for (int i = 0; i < std::atoi(words[3]); ++i)
    {
        threads.emplace_back([&shared, i] { work(shared, static_cast<unsigned int>(i)); });
    }
    std::this_thread::sleep_for(std::chrono::duration<double>(std::atof(words[2])));
    engine.close(); // while all of them run
    scheduler.close();
    shared.over = true;
    for (std::thread& each : threads)
    {
        each.join();
    }
    stepper.join();
    std::cout << shared.texts << " texts, " << shared.cancelled << " cancelled, " << shared.wrong << " wrong\n";
    return shared.wrong == 0 && shared.texts > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
