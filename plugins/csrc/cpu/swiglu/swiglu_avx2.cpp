#include "simd/avx2.h"

#include "swiglu/swiglu_kernel.h"

namespace q2export::cpu
{

SwigluKernels const kSwigluAvx2 = kKernels;

} // namespace q2export::cpu
