// Makes ONNX Runtime's custom op of a table and a kernel class: signatures in, statuses out, no exception through.
#pragma once

#include <exception>
#include <iterator>
#include <string>
#include <type_traits>

#include "node.h"

namespace q2export::onnxruntime
{

// An input or output of an op.
struct Operand
{
    char const* name;
    ONNXTensorElementDataType type; // UNDEFINED: more than one, which the kernel checks
    OrtCustomOpInputOutputCharacteristic characteristic = INPUT_OUTPUT_REQUIRED;
};

template <typename Item>
struct Table
{
    Item const* items;
    size_t count;
};

// What an op looks like to a graph.
struct Signature
{
    char const* name;
    Table<Operand> inputs;
    Table<Operand> outputs;
};

// Whether a kernel has the table kInPlace: pairs of an input and the output that may take its memory.
template <typename Kernel, typename = void>
struct HasInPlace : std::false_type
{
};

template <typename Kernel>
struct HasInPlace<Kernel, std::void_t<decltype(Kernel::kInPlace)>> : std::true_type
{
};

// The execution provider of a Kernel: its kProvider; without one, null: the CPU.
template <typename Kernel, typename = void>
struct Provider
{
    static constexpr char const* kName = nullptr;
};

template <typename Kernel>
struct Provider<Kernel, std::void_t<decltype(Kernel::kProvider)>>
{
    static constexpr char const* kName = Kernel::kProvider;
};

// A Kernel has: static Signature const kSignature; Kernel(Attributes const&); void run(Call const&) const.
template <typename Kernel>
class Op : public OrtCustomOp
{
public:
    Op()
        : OrtCustomOp{}
    {
        version = kOrtApiVersion;
        GetName = [](OrtCustomOp const*) { return Kernel::kSignature.name; };
        GetExecutionProviderType = [](OrtCustomOp const*) -> char const* { return Provider<Kernel>::kName; };
        GetInputTypeCount = [](OrtCustomOp const*) { return Kernel::kSignature.inputs.count; };
        GetInputType = [](OrtCustomOp const*, size_t index) { return Kernel::kSignature.inputs.items[index].type; };
        GetInputCharacteristic
            = [](OrtCustomOp const*, size_t index) { return Kernel::kSignature.inputs.items[index].characteristic; };
        GetInputMemoryType = [](OrtCustomOp const*, size_t) { return OrtMemTypeDefault; };
        GetOutputTypeCount = [](OrtCustomOp const*) { return Kernel::kSignature.outputs.count; };
        GetOutputType = [](OrtCustomOp const*, size_t index) { return Kernel::kSignature.outputs.items[index].type; };
        GetOutputCharacteristic
            = [](OrtCustomOp const*, size_t index) { return Kernel::kSignature.outputs.items[index].characteristic; };
        GetVariadicInputMinArity = [](OrtCustomOp const*) { return 1; };
        GetVariadicInputHomogeneity = [](OrtCustomOp const*) { return 0; };
        GetVariadicOutputMinArity = [](OrtCustomOp const*) { return 1; };
        GetVariadicOutputHomogeneity = [](OrtCustomOp const*) { return 0; };
        GetStartVersion = [](OrtCustomOp const*) { return 1; };
        GetEndVersion = [](OrtCustomOp const*) { return 1; };
        CreateKernelV2 = create;
        KernelComputeV2 = compute;
        if constexpr (HasInPlace<Kernel>::value)
        {
            GetMayInplace = [](int** inputs, int** outputs) -> size_t {
                constexpr size_t kCount = std::size(Kernel::kInPlace);
                *inputs = new int[kCount];
                *outputs = new int[kCount];
                for (size_t i = 0; i < kCount; ++i)
                {
                    (*inputs)[i] = Kernel::kInPlace[i][0];
                    (*outputs)[i] = Kernel::kInPlace[i][1];
                }
                return kCount;
            };
            ReleaseMayInplace = [](int* inputs, int* outputs) {
                delete[] inputs;
                delete[] outputs;
            };
        }
        KernelDestroy = [](void* state) { delete static_cast<State*>(state); };
    }

private:
    struct State
    {
        OrtApi const& api;
        std::string node; // its name
        Kernel kernel;
    };

    template <typename Body>
    static OrtStatus* guarded(OrtApi const& api, std::string const& node, Body const& body)
    {
        try
        {
            body();
            return nullptr;
        }
        catch (OrtFailure const& failure)
        {
            return failure.status;
        }
        catch (std::exception const& error)
        {
            std::string const text = std::string("q2export: ") + Kernel::kSignature.name + " " + node + ": ";
            return api.CreateStatus(ORT_INVALID_ARGUMENT, (text + error.what()).c_str());
        }
    }

    static OrtStatus* create(OrtCustomOp const*, OrtApi const* api, OrtKernelInfo const* info, void** kernel)
    {
        Attributes const attributes(*api, info);
        std::string name;
        return guarded(*api, name, [&] {
            name = attributes.node_name();
            *kernel = new State{*api, name, Kernel(attributes)};
        });
    }

    static OrtStatus* compute(void* state, OrtKernelContext* context)
    {
        State const& node = *static_cast<State const*>(state);
        return guarded(node.api, node.node, [&] { node.kernel.run(Call(node.api, context)); });
    }
};

} // namespace q2export::onnxruntime
