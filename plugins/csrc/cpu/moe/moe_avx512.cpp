#include "simd/avx512.h"

#include "moe/moe_kernel.h"

namespace q2export::cpu
{

MoeKernels const kMoeAvx512 = kKernels;

} // namespace q2export::cpu
