#include "simd/portable.h"

#include "linear/float_kernel.h"

namespace q2export::cpu
{

LinearKernels const kLinearPortable = kKernels;

} // namespace q2export::cpu
