#include "blocks/cpu/gemm_block.h"
#include "cpu/vec_avx2.h"

namespace greedynas::blocks {

const GemmKernel kGemmAvx2 = gemm_kernel_over<cpu::VecAvx2>("avx2");

}  // namespace greedynas::blocks
