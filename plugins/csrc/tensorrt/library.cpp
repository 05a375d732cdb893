// How TensorRT finds the plugins: through the two functions that its load_library calls, or by nothing but loading
// the file, after TensorRT itself (polygraphy --plugins, ctypes.CDLL).
#include <array>
#include <stdexcept>
#include <vector>

#include <NvInferRuntime.h>

#include "common/creator.h"
#include "common/loaded.h"
#include "common/log.h"
#include "common/op.h"

namespace q2export
{
namespace
{

using nvinfer1::IPluginCreatorInterface;

constexpr int32_t kCreatorCount = 5;

std::array<IPluginCreatorInterface*, kCreatorCount> const& creators()
{
    static Creator rotary_embedding(kRotaryEmbedding);
    static Creator group_query_attention(kGroupQueryAttention);
    static Creator rotary_attention(kRotaryAttention);
    static Creator moe(kMoE);
    static Creator quantized_moe(kQuantizedMoE);
    static std::array<IPluginCreatorInterface*, kCreatorCount> const all{
        &rotary_embedding, &group_query_attention, &rotary_attention, &moe, &quantized_moe};
    return all;
}

std::vector<nvinfer1::IPluginRegistry*> registries()
{
    std::vector<nvinfer1::IPluginRegistry*> found;
    for (void* const function : loaded_functions("getPluginRegistry"))
    {
        if (nvinfer1::IPluginRegistry* const registry = reinterpret_cast<decltype(&getPluginRegistry)>(function)())
        {
            found.push_back(registry);
        }
    }
    return found;
}

bool register_creators()
{
    std::vector<nvinfer1::IPluginRegistry*> const found = registries();
    if (found.empty())
    {
        throw std::runtime_error("no TensorRT is loaded in this process; load it before this library");
    }
    for (nvinfer1::IPluginRegistry* const registry : found)
    {
        for (IPluginCreatorInterface* const creator : creators())
        {
            registry->registerCreator(*creator, kPluginNamespace);
        }
    }
    return true;
}

bool deregister_creators()
{
    for (nvinfer1::IPluginRegistry* const registry : registries())
    {
        for (IPluginCreatorInterface* const creator : creators())
        {
            registry->deregisterCreator(*creator);
        }
    }
    return true;
}

// True from loading the file until load_library takes over. The linker keeps the library in memory (-z nodelete),
// because a registry may hold its creators even after TensorRT has unloaded it.
bool registered = guarded("plugins are not registered", false, register_creators);

// load_library refuses a library whose creators its registry has already, so they leave before they come.
void make_way() noexcept
{
    if (registered)
    {
        registered = !guarded("plugins are not handed over", false, deregister_creators);
    }
}

} // namespace
} // namespace q2export

extern "C" Q2EXPORT_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& nbCreators)
{
    q2export::make_way();
    nbCreators = q2export::kCreatorCount;
    return q2export::creators().data();
}

extern "C" Q2EXPORT_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder)
{
    q2export::set_logger_finder(finder);
}
