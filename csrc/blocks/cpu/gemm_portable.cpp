#include "blocks/cpu/gemm_bf16_block.h"
#include "cpu/vec_generic.h"

namespace greedynas::blocks {

const GemmKernel kGemmPortable = gemm_kernel_over<cpu::VecGeneric<4>>("portable");
const GemmBf16Kernel kGemmBf16Portable = gemm_bf16_kernel_over<cpu::VecGeneric<4>>("portable");

}  // namespace greedynas::blocks
