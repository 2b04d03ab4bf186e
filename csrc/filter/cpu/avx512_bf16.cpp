#include "cpu/pairs_avx512.h"
#include "cpu/vec_avx512.h"
#include "filter/cpu/pair_block.h"

namespace greedynas::filter {

using Vec = cpu::VecAvx512<true>;

const Kernel kAvx512Bf16Kernel = kernel_over<Vec, Pairs<cpu::PairsAvx512<Vec>>>("avx512_bf16");

}  // namespace greedynas::filter
