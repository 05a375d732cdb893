#include "quantized_linear/integers_portable.h"

#include "quantized_linear/quantized_linear_kernel.h"

namespace q2export::cpu
{

QuantizedLinearKernels const kQuantizedLinearPortable = kKernels;

} // namespace q2export::cpu
