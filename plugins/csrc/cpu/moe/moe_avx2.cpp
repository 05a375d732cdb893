#include "simd/avx2.h"

#include "moe/moe_kernel.h"

namespace q2export::cpu
{

MoeKernels const kMoeAvx2 = kKernels;

} // namespace q2export::cpu
