// How TensorRT finds the plugins: through the two functions that its load_library calls, or by nothing but loading
// the file, after TensorRT itself (polygraphy --plugins, ctypes.CDLL).
#include <array>

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

constexpr int32_t kCreatorCount = 4;

std::array<IPluginCreatorInterface*, kCreatorCount> const& creators()
{
    static Creator rotary_embedding(kRotaryEmbedding);
    static Creator group_query_attention(kGroupQueryAttention);
    static Creator rotary_attention(kRotaryAttention);
    static Creator moe(kMoE);
    static std::array<IPluginCreatorInterface*, kCreatorCount> const all{
        &rotary_embedding, &group_query_attention, &rotary_attention, &moe};
    return all;
}

// Registers the creators with every TensorRT that is loaded.
bool register_creators()
{
    for (void* const function : loaded_functions("getPluginRegistry"))
    {
        nvinfer1::IPluginRegistry* const registry = reinterpret_cast<decltype(&getPluginRegistry)>(function)();
        for (IPluginCreatorInterface* const creator : creators())
        {
            if (registry != nullptr)
            {
                registry->registerCreator(*creator, kPluginNamespace);
            }
        }
    }
    return true;
}

bool const registered = guarded("registering the plugins", false, register_creators);

} // namespace
} // namespace q2export

extern "C" Q2EXPORT_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& nbCreators)
{
    nbCreators = q2export::kCreatorCount;
    return q2export::creators().data();
}

extern "C" Q2EXPORT_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder)
{
    q2export::set_logger_finder(finder);
}
