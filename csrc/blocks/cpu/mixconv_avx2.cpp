#include "blocks/cpu/mixconv_backward.h"
#include "cpu/vec_avx2.h"

namespace greedynas::blocks {

const MixconvKernel kMixconvAvx2 = mixconv_kernel_over<cpu::VecAvx2>("avx2");

}  // namespace greedynas::blocks
