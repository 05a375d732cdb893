#include "simd/avx512.h"

#include "linear/float_kernel.h"

namespace q2export::cpu
{

LinearKernels const kLinearAvx512 = kKernels;

} // namespace q2export::cpu
