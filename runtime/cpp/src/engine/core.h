// An opened package, and who computes with it: it may be closed from any thread, and not be used after a fork.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>

#include "backends/base.h"
#include "generate/defaults.h"
#include "package/package.h"
#include "text/tokenizer.h"

namespace q2export::runtime
{

class Core
{
public:
    struct OpenOptions
    {
        Check check = Check::kFast;
        int threads = -1; // -1: as the package says
        std::string onnxruntime_library;
        std::string ops_library;
    };

    // Throws Error of any kind: see q2e_engine_open.
    Core(std::string const& folder, OpenOptions const& options);

    // While one lives, the engine stays open; for one call of the backend.
    class Computing
    {
    public:
        // Throws Error: the engine is closed, or was opened before a fork.
        explicit Computing(Core& core);
        ~Computing();
        Computing(Computing const&) = delete;
        Computing& operator=(Computing const&) = delete;

        Backend& backend() const
        {
            return *core_.backend_;
        }

    private:
        Core& core_;
    };

    // Let no call of the backend begin, wait for those that run, and free the engine.
    void close();

    // Whether this process is another one than that which opened the package.
    bool is_forked() const;

    EngineInfo const& engine() const
    {
        return engine_;
    }

    GenerationDefaults const& defaults() const
    {
        return defaults_;
    }

    std::shared_ptr<Tokenizer const> const& tokenizer() const
    {
        return tokenizer_;
    }

    std::string const& warnings() const
    {
        return warnings_;
    }

    bool has_kernels() const
    {
        return has_kernels_;
    }

    std::string const& name() const
    {
        return name_;
    }

private:
    std::string name_;
    EngineInfo engine_;
    GenerationDefaults defaults_;
    std::shared_ptr<Tokenizer const> tokenizer_;
    std::unique_ptr<Backend> backend_;
    std::string warnings_;
    bool has_kernels_ = true;
    int forks_;

    std::mutex mutex_;
    std::condition_variable changed_;
    size_t computing_ = 0;
    bool closed_ = false;
};

} // namespace q2export::runtime
