#include "blocks/cpu/mixconv_backward.h"
#include "cpu/vec_avx512.h"

namespace greedynas::blocks {

const MixconvKernel kMixconvAvx512 = mixconv_kernel_over<cpu::VecAvx512<false>>("avx512");

}  // namespace greedynas::blocks
