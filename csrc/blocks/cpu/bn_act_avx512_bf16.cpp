#include "blocks/cpu/bn_act_block.h"
#include "cpu/vec_avx512.h"

namespace greedynas::norm {

const Kernel kAvx512Bf16Kernel = kernel_over<cpu::VecAvx512<false>>("avx512_bf16");

}  // namespace greedynas::norm
