#include "simd/portable.h"

#include "moe/moe_kernel.h"

namespace q2export::cpu
{

MoeKernels const kMoePortable = kKernels;

} // namespace q2export::cpu
