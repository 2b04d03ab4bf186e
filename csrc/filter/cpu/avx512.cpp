#include "cpu/vec_avx512.h"
#include "filter/cpu/block.h"

namespace greedynas::filter {

const Kernel kAvx512Kernel = kernel_over<cpu::VecAvx512<false>>("avx512");

}  // namespace greedynas::filter
