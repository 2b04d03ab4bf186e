#include "blocks/cpu/gemm_block.h"
#include "cpu/vec_generic.h"

namespace greedynas::blocks {

const GemmKernel kGemmPortable = gemm_kernel_over<cpu::VecGeneric<4>>("portable");

}  // namespace greedynas::blocks
