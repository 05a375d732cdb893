#include "attention/transpose_avx512.h"

#include "attention/attention_kernel.h"

namespace q2export::cpu
{

AttentionKernels const kAttentionAvx512 = kKernels;

} // namespace q2export::cpu
