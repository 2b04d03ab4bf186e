#include "cpu/vec_generic.h"
#include "optim/cpu/sgd_block.h"

namespace greedynas::optim {

const Kernel kPortableKernel = kernel_over<cpu::VecGeneric<4>>("portable");

}  // namespace greedynas::optim
