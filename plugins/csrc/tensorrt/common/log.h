// Errors inside the library are exceptions; on its border they become a line in TensorRT's log and a return value.
#pragma once

#include <exception>
#include <stdexcept>
#include <string>

#include <NvInferRuntime.h>

namespace q2export
{

// What is wrong with a node: attribute, type or shape, with what was expected and found.
class Refusal : public std::runtime_error
{
public:
    using std::runtime_error::runtime_error;
};

// Where TensorRT told the library to log; null before it did.
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

// Logs an error: to the logger TensorRT gave, else to that of a loaded TensorRT, else to stderr.
void log_error(char const* subject, char const* message) noexcept;

// Returns body(), or logs what it throws and returns `failure`. `subject` names what the message is about.
template <typename Result, typename Body>
Result guarded(char const* subject, Result failure, Body const& body) noexcept
{
    try
    {
        return body();
    }
    catch (std::exception const& error)
    {
        log_error(subject, error.what());
    }
    catch (...)
    {
        log_error(subject, "unknown exception");
    }
    return failure;
}

} // namespace q2export
