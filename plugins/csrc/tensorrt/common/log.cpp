#include "common/log.h"

#include <atomic>
#include <cstdio>

#include "common/loaded.h"

namespace q2export
{
namespace
{

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

nvinfer1::ILogger* find_logger()
{
    if (nvinfer1::ILoggerFinder* const finder = logger_finder.load())
    {
        if (nvinfer1::ILogger* const logger = finder->findLogger())
        {
            return logger;
        }
    }
    for (void* const function : loaded_functions("getLogger"))
    {
        if (nvinfer1::ILogger* const logger = reinterpret_cast<decltype(&getLogger)>(function)())
        {
            return logger;
        }
    }
    return nullptr;
}

} // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept
{
    logger_finder.store(finder);
}

void log_error(char const* subject, char const* message) noexcept
{
    try
    {
        std::string const line = std::string("q2export: ") + subject + ": " + message;
        if (nvinfer1::ILogger* const logger = find_logger())
        {
            logger->log(nvinfer1::ILogger::Severity::kERROR, line.c_str());
            return;
        }
    }
    catch (...)
    {
        // Out of memory, most likely: stderr needs none.
    }
    std::fprintf(stderr, "q2export: %s: %s\n", subject, message);
}

} // namespace q2export
