#include "simd/avx2.h"

#include "linear/float_kernel.h"

namespace q2export::cpu
{

LinearKernels const kLinearAvx2 = kKernels;

} // namespace q2export::cpu
