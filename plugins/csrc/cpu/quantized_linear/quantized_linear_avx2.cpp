#include "quantized_linear/integers_avx2.h"

#include "quantized_linear/quantized_linear_kernel.h"

namespace q2export::cpu
{

QuantizedLinearKernels const kQuantizedLinearAvx2 = kKernels;

} // namespace q2export::cpu
