#include "blocks/cpu/gemm_block.h"
#include "cpu/vec_avx512.h"

namespace greedynas::blocks {

const GemmKernel kGemmAvx512 = gemm_kernel_over<cpu::VecAvx512<false>>("avx512");

}  // namespace greedynas::blocks
