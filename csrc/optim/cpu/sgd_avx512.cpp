#include "cpu/vec_avx512.h"
#include "optim/cpu/sgd_block.h"

namespace greedynas::optim {

const Kernel kAvx512Kernel = kernel_over<cpu::VecAvx512<false>>("avx512");

}  // namespace greedynas::optim
