#include "attention/transpose_portable.h"

#include "attention/attention_kernel.h"

namespace q2export::cpu
{

AttentionKernels const kAttentionPortable = kKernels;

} // namespace q2export::cpu
