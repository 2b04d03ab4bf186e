#include "cpu/vec_avx2.h"
#include "filter/cpu/block.h"

namespace greedynas::filter {

const Kernel kAvx2Kernel = kernel_over<cpu::VecAvx2>("avx2");

}  // namespace greedynas::filter
