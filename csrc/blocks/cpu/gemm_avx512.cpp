#include "blocks/cpu/gemm_bf16_block.h"
#include "blocks/cpu/gemm_eight.h"

namespace greedynas::blocks {

using Vec = cpu::VecAvx512<false>;

const GemmKernel kGemmAvx512 = gemm_kernel_over<Vec>("avx512");
const GemmBf16Kernel kGemmBf16Avx512 = gemm_bf16_kernel_over<Vec>("avx512");

}  // namespace greedynas::blocks
