#include "simd/avx512.h"

#include "swiglu/swiglu_kernel.h"

namespace q2export::cpu
{

SwigluKernels const kSwigluAvx512 = kKernels;

} // namespace q2export::cpu
