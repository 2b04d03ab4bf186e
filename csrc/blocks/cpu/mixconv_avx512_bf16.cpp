#include "blocks/cpu/mixconv_pairs.h"
#include "cpu/pairs_avx512.h"
#include "cpu/vec_avx512.h"

namespace greedynas::blocks {

using Vec = cpu::VecAvx512<false>;

const MixconvKernel kMixconvAvx512Bf16 =
    mixconv_pair_kernel_over<Vec, cpu::PairsAvx512<Vec>, &kMixconvAvx512>("avx512_bf16");

}  // namespace greedynas::blocks
