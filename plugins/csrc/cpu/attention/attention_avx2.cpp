#include "attention/transpose_avx2.h"

#include "attention/attention_kernel.h"

namespace q2export::cpu
{

AttentionKernels const kAttentionAvx2 = kKernels;

} // namespace q2export::cpu
