#include "simd/portable.h"

#include "swiglu/swiglu_kernel.h"

namespace q2export::cpu
{

SwigluKernels const kSwigluPortable = kKernels;

} // namespace q2export::cpu
