#include "simd/portable.h"

#include "linear/linear_kernel.h"

namespace q2export::cpu
{

LinearKernels const kLinearPortable = kKernels;

} // namespace q2export::cpu
