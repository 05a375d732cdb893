#include "core.h"

#include <atomic>
#include <pthread.h>
#include <sched.h>

#include "error.h"
#include "backends/onnxruntime/backend.h"

namespace q2export::runtime
{
namespace
{

// How often this process, or one it comes from, was made by fork: threads and locks of the one before are not here.
std::atomic<int> g_forks{0};

void count_forks()
{
    static int const registered = pthread_atfork(nullptr, nullptr, [] { g_forks.fetch_add(1); });
    static_cast<void>(registered);
}

int check_threads(int threads)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    int const processors = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
    if (threads < 0 || threads > processors)
    {
        throw PackageError("threads must be an integer from 0 (one per core) to " + std::to_string(processors)
            + ", the processors of this machine that may be used, found " + std::to_string(threads));
    }
    return threads;
}

} // namespace

Core::Core(std::string const& folder, OpenOptions const& options)
{
    count_forks();
    forks_ = g_forks.load();
    int const asked = options.threads == Q2E_THREADS_OF_PROFILE ? -1 : check_threads(options.threads);
    Package const package = read_package(folder, options.check);
    name_ = package.folder;
    engine_ = package.manifest.engine;
    tokenizer_ = open_tokenizer(package);
    defaults_ = read_generation_defaults(package);
    warnings_ = defaults_.warnings;
    if (engine_.format != "onnx" || package.manifest.target != "onnxruntime")
    {
        throw PackageError(name_ + ": built for target '" + package.manifest.target
            + "'; libq2export runs packages for onnxruntime; rebuild with: " + package.manifest.rebuild_command);
    }
    int const threads = asked >= 0 ? asked : static_cast<int>(package.manifest.threads);
    ort::Opened opened
        = ort::open_backend(name_, engine_, {threads, options.onnxruntime_library, options.ops_library});
    backend_ = std::move(opened.backend);
    has_kernels_ = opened.warning.empty();
    warnings_ += has_kernels_ ? "" : name_ + ": " + opened.warning + "\n";
}

Core::Computing::Computing(Core& core)
    : core_(core)
{
    if (core.is_forked())
    {
        throw Error(Q2E_CLOSED_ERROR, core.name_ + ": was opened before this process was forked; open it again here");
    }
    std::lock_guard<std::mutex> const lock(core.mutex_);
    if (core.closed_)
    {
        throw Error(Q2E_CLOSED_ERROR, core.name_ + ": the engine is closed; open the package again");
    }
    ++core.computing_;
}

Core::Computing::~Computing()
{
    std::lock_guard<std::mutex> const lock(core_.mutex_);
    --core_.computing_;
    core_.changed_.notify_all();
}

void Core::close()
{
    if (is_forked())
    {
        return;
    }
    std::unique_lock<std::mutex> lock(mutex_);
    closed_ = true;
    changed_.wait(lock, [this] { return computing_ == 0; });
    backend_.reset();
}

bool Core::is_forked() const
{
    return forks_ != g_forks.load();
}

} // namespace q2export::runtime
