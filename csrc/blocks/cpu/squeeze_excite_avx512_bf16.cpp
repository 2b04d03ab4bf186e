#include "blocks/cpu/squeeze_excite_block.h"
#include "cpu/vec_avx512.h"

namespace greedynas::norm {

const SqueezeKernel kAvx512Bf16SqueezeKernel = squeeze_kernel_over<cpu::VecAvx512<false>>();

}  // namespace greedynas::norm
