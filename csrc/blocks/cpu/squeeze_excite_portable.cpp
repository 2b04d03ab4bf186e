#include "blocks/cpu/squeeze_excite_block.h"
#include "cpu/vec_generic.h"

namespace greedynas::norm {

const SqueezeKernel kScalarSqueezeKernel = squeeze_kernel_over<cpu::VecGeneric<1>>();
const SqueezeKernel kPortableSqueezeKernel = squeeze_kernel_over<cpu::VecGeneric<4>>();

}  // namespace greedynas::norm
