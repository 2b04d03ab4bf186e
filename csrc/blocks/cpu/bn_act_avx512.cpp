#include "blocks/cpu/bn_act_block.h"
#include "cpu/vec_avx512.h"

namespace greedynas::norm {

const Kernel kAvx512Kernel = kernel_over<cpu::VecAvx512<false>>("avx512");

}  // namespace greedynas::norm
