#include "blocks/cpu/gemm_bf16_block.h"
#include "cpu/vec_avx2.h"

namespace greedynas::blocks {

const GemmKernel kGemmAvx2 = gemm_kernel_over<cpu::VecAvx2>("avx2");
const GemmBf16Kernel kGemmBf16Avx2 = gemm_bf16_kernel_over<cpu::VecAvx2>("avx2");

}  // namespace greedynas::blocks
