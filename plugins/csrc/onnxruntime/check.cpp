#include "node.h"

namespace q2export::onnxruntime
{

void Call::check(q2export_status status)
{
    if (status != Q2EXPORT_SUCCESS)
    {
        throw Refusal(q2export_cpu_last_error());
    }
}

} // namespace q2export::onnxruntime
