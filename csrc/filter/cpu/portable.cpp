#include "cpu/vec_generic.h"
#include "filter/cpu/block.h"

namespace greedynas::filter {

const Kernel kPortableKernel = kernel_over<cpu::VecGeneric<4>>("portable");

}  // namespace greedynas::filter
