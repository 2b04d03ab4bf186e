#include "blocks/cpu/squeeze_excite_block.h"
#include "cpu/vec_avx2.h"

namespace greedynas::norm {

const SqueezeKernel kAvx2SqueezeKernel = squeeze_kernel_over<cpu::VecAvx2>();

}  // namespace greedynas::norm
