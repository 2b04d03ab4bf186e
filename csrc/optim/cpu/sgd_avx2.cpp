#include "cpu/vec_avx2.h"
#include "optim/cpu/sgd_block.h"

namespace greedynas::optim {

const Kernel kAvx2Kernel = kernel_over<cpu::VecAvx2>("avx2");

}  // namespace greedynas::optim
