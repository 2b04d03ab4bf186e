#include "blocks/cpu/bn_act_block.h"
#include "cpu/vec_generic.h"

namespace greedynas::norm {

const Kernel kScalarKernel = kernel_over<cpu::VecGeneric<1>>("scalar");
const Kernel kPortableKernel = kernel_over<cpu::VecGeneric<4>>("portable");

}  // namespace greedynas::norm
