#include "blocks/cpu/mixconv_backward.h"
#include "cpu/vec_generic.h"

namespace greedynas::blocks {

const MixconvKernel kMixconvPortable = mixconv_kernel_over<cpu::VecGeneric<4>>("portable");

}  // namespace greedynas::blocks
