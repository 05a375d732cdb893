// An HTTP service that streams tokens:  service PACKAGE [PORT]
//
//   curl -N 'http://127.0.0.1:8000/complete?ids=395,86,77&max_new_tokens=20&seed=1'
//
// All requests share the steps of one scheduler; one that goes away is cancelled. Port 0 takes a free one.
#include <csignal>
#include <iostream>
#include <memory>
#include <sstream>
#include <thread>
#include <unistd.h>

#include <httplib.h>

#include "q2export/q2export.hpp"

namespace
{

std::vector<int64_t> parse_ids(std::string const& text)
{
    std::vector<int64_t> ids;
    std::istringstream words(text);
    for (std::string word; std::getline(words, word, ',');)
    {
        ids.push_back(std::stoll(word));
    }
    return ids;
}

q2export::GenerationOptions parse_options(httplib::Request const& request)
{
    q2export::GenerationOptions options;
    options.max_new_tokens = 64;
    if (request.has_param("max_new_tokens"))
    {
        options.max_new_tokens = std::stoll(request.get_param_value("max_new_tokens"));
    }
    if (request.has_param("seed"))
    {
        options.seed = {std::stoull(request.get_param_value("seed"))};
        options.do_sample = true;
    }
    return options;
}

void complete(q2export::Scheduler const& scheduler, httplib::Request const& request, httplib::Response& response)
{
    try
    {
        auto const ids = parse_ids(request.get_param_value("ids"));
        auto stream = std::make_shared<q2export::Stream>(scheduler.submit(ids, parse_options(request)));
        response.set_chunked_content_provider("text/plain", [stream](size_t, httplib::DataSink& sink) {
            try
            {
                auto const event = stream->next();
                if (!event)
                {
                    sink.done();
                    return true;
                }
                std::string const line = std::to_string(event->token_id) + "\n";
                return sink.write(line.data(), line.size()); // false: the client has gone, and the stream with it
            }
            catch (q2export::Error const&)
            {
                return false; // the connection ends in the middle: the client sees that there is no end
            }
        });
    }
    catch (std::exception const& problem) // an option, a token id, a full queue
    {
        auto const* const error = dynamic_cast<q2export::Error const*>(&problem);
        response.status = error != nullptr && error->status() == Q2E_QUEUE_FULL ? 429 : 400;
        response.set_content(std::string(problem.what()) + "\n", "text/plain");
    }
}

// Steps until the scheduler is closed; without an engine there is nothing left to serve.
void work(q2export::Scheduler const& scheduler)
{
    try
    {
        while (true)
        {
            scheduler.step();
        }
    }
    catch (q2export::Error const& problem)
    {
        if (problem.status() != Q2E_CLOSED_ERROR)
        {
            std::cerr << "error: " << problem.what() << '\n';
            kill(getpid(), SIGTERM);
        }
    }
}

void serve(std::string const& package, int port)
{
    sigset_t signals; // blocked in all threads but the one that waits for them
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);

    q2export::Engine const engine(package);
    q2export::Scheduler const scheduler(engine);
    httplib::Server server;
    server.new_task_queue = [] { return new httplib::ThreadPool(64); };
    server.Get("/complete", [&scheduler](httplib::Request const& request, httplib::Response& response) {
        complete(scheduler, request, response);
    });
    port = port == 0 ? server.bind_to_any_port("127.0.0.1") : server.bind_to_port("127.0.0.1", port) ? port : -1;
    if (port < 0)
    {
        throw std::runtime_error("the port is taken");
    }
    std::thread worker([&scheduler] { work(scheduler); });
    std::thread waiter([&signals, &server] {
        int signal = 0;
        sigwait(&signals, &signal);
        server.stop();
    });
    std::cout << "listening on port " << port << std::endl;
    server.listen_after_bind();
    scheduler.close();
    worker.join();
    waiter.join();
}

} // namespace

int main(int count, char** words)
{
    try
    {
        serve(count > 1 ? words[1] : "", count > 2 ? std::stoi(words[2]) : 8000);
    }
    catch (std::exception const& problem)
    {
        std::cerr << "error: " << problem.what() << '\n';
        return EXIT_FAILURE;
    }
}
