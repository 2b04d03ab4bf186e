#include "cpu/vec_generic.h"
#include "filter/cpu/cells_block.h"

namespace greedynas::filter {

const CellKernel kCellsPortable = cell_kernel_over<cpu::VecGeneric<4>>("portable");

}  // namespace greedynas::filter
