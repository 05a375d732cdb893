#include "backends/base.h"

#include "contract.h"
#include "error.h"
#include "backends/onnxruntime/backend.h"
#include "backends/onnxruntime/cache.h"

namespace q2export::runtime::ort
{
namespace
{

constexpr size_t kMaxBindings = 64; // of a cache; each names all its layers

class OrtBackend : public Backend
{
public:
    OrtBackend(Library const& library, std::shared_ptr<OrtSession> session, std::string path, EngineInfo const& engine)
        : library_(library)
        , api_(*library.api)
        , session_(std::move(session))
        , path_(std::move(path))
        , engine_(engine)
        , memory_(nullptr, Releaser<OrtMemoryInfo>{api_.ReleaseMemoryInfo})
    {
        OrtMemoryInfo* memory = nullptr;
        check(api_.CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));
        memory_.reset(memory);
    }

    EngineInfo const& engine() const override
    {
        return engine_;
    }

    std::unique_ptr<Cache> new_cache(size_t rows, size_t capacity) override
    {
        check_cache_size(engine_, rows, capacity);
        return std::make_unique<OrtCache>(session_, engine_, rows, capacity);
    }

    void forward(Cache& cache, Step& step) override
    {
        check_step(cache, step);
        auto& ours = static_cast<OrtCache&>(cache);
        Binding& binding = binding_of(ours, step.first, step.rows);
        bind_step(binding, step);
        check(api_.RunWithBinding(session_.get(), nullptr, binding.binding.get()));
    }

private:
    void check(OrtStatus* status) const
    {
        if (status != nullptr)
        {
            throw PackageError(path_ + ": ONNX Runtime " + library_.version + " cannot run the graph: "
                + take_message(api_, status));
        }
    }

    Binding& binding_of(OrtCache& cache, size_t first, size_t rows)
    {
        auto& bindings = cache.bindings();
        auto const found = bindings.find({first, rows});
        if (found != bindings.end())
        {
            return found->second;
        }
        if (bindings.size() >= kMaxBindings)
        {
            bindings.clear();
        }
        OrtIoBinding* made = nullptr;
        check(api_.CreateIoBinding(session_.get(), &made));
        Binding binding;
        binding.binding = owned(made, api_.ReleaseIoBinding);
        int64_t const shape[] = {static_cast<int64_t>(rows), engine_.num_key_value_heads,
            static_cast<int64_t>(cache.capacity()), engine_.head_dim};
        ONNXTensorElementDataType const type = element_type(engine_.kv_dtype);
        for (int64_t layer = 0; layer < engine_.num_hidden_layers; ++layer)
        {
            for (size_t index = 0; index < 2; ++index)
            {
                auto const value = tensor(cache.row(layer, index, first), rows * cache.row_bytes(), shape, 4, type);
                check(api_.BindInput(made, cache_name(kPast[index], layer).c_str(), value.get()));
                check(api_.BindOutput(made, cache_name(kPresent[index], layer).c_str(), value.get()));
            }
        }
        return bindings.emplace(std::make_pair(first, rows), std::move(binding)).first->second;
    }

    // What lies where it lay, of the same shape, is bound already.
    void bind_step(Binding& binding, Step& step) const
    {
        std::array<void const*, 5> const addresses{step.input_ids.data(), step.past_lengths.data(),
            step.query_lengths.data(), step.logits_indices.data(), step.logits.data()};
        if (binding.addresses == addresses && binding.sequence == step.sequence && binding.wanted == step.wanted)
        {
            return;
        }
        OrtIoBinding* const io = binding.binding.get();
        auto const rows = static_cast<int64_t>(step.rows);
        auto const wanted = static_cast<int64_t>(step.wanted);
        bind_input(io, kInputIds, step.input_ids, {rows, static_cast<int64_t>(step.sequence)}, 2);
        bind_input(io, kPastLengths, step.past_lengths, {rows}, 1);
        bind_input(io, kQueryLengths, step.query_lengths, {rows}, 1);
        bind_input(io, kLogitsIndices, step.logits_indices, {rows, wanted}, 2);
        int64_t const shape[] = {rows, wanted, engine_.vocab_size};
        auto const logits = tensor(
            step.logits.data(), step.logits.size() * sizeof(float), shape, 3, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
        check(api_.BindOutput(io, kLogits, logits.get()));
        binding.addresses = addresses;
        binding.sequence = step.sequence;
        binding.wanted = step.wanted;
    }

    void bind_input(OrtIoBinding* io, char const* name, std::vector<int64_t>& data, int64_t const (&shape)[2], size_t rank) const
    {
        auto const value
            = tensor(data.data(), data.size() * sizeof(int64_t), shape, rank, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
        check(api_.BindInput(io, name, value.get()));
    }

    Owned<OrtValue> tensor(
        void* data, size_t bytes, int64_t const* shape, size_t rank, ONNXTensorElementDataType type) const
    {
        static int64_t nothing = 0; // of an empty tensor, whose vector may have no address
        OrtValue* value = nullptr;
        void* const address = data == nullptr ? &nothing : data;
        check(api_.CreateTensorWithDataAsOrtValue(memory_.get(), address, bytes, shape, rank, type, &value));
        return owned(value, api_.ReleaseValue);
    }

    Library const& library_;
    OrtApi const& api_;
    std::shared_ptr<OrtSession> session_;
    std::string path_;
    EngineInfo engine_;
    Owned<OrtMemoryInfo> memory_;
};

} // namespace

Opened open_backend(std::string const& folder, EngineInfo const& engine, OpenOptions const& options)
{
    Library const& library = open_library(options.onnxruntime_library);
    std::string const path = folder + "/" + engine.file;
    Opened opened;
    std::string ops;
    if (has_cpu_ops(path))
    {
        ops = find_ops_library(options.ops_library);
        if (ops.empty())
        {
            opened.warning = "running without the CPU kernels of q2export, libq2export_onnxruntime.so: correct, and "
                             "several times slower; see docs/cpp.md";
        }
    }
    Session session = open_session(library, path, options.threads, ops);
    check_signature(library, session.get(), path, engine);
    auto* const release = library.api->ReleaseSession;
    std::shared_ptr<OrtSession> shared(session.release(), release);
    opened.backend = std::make_unique<OrtBackend>(library, std::move(shared), path, engine);
    return opened;
}

} // namespace q2export::runtime::ort
