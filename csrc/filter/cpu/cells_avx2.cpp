#include "cpu/vec_avx2.h"
#include "filter/cpu/cells_block.h"

namespace greedynas::filter {

const CellKernel kCellsAvx2 = cell_kernel_over<cpu::VecAvx2>("avx2");

}  // namespace greedynas::filter
