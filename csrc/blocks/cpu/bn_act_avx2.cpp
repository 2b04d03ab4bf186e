#include "blocks/cpu/bn_act_block.h"
#include "cpu/vec_avx2.h"

namespace greedynas::norm {

const Kernel kAvx2Kernel = kernel_over<cpu::VecAvx2>("avx2");

}  // namespace greedynas::norm
