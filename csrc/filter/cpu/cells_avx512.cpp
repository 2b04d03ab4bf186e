#include "cpu/vec_avx512.h"
#include "filter/cpu/cells_block.h"

namespace greedynas::filter {

const CellKernel kCellsAvx512 = cell_kernel_over<cpu::VecAvx512<false>>("avx512");

}  // namespace greedynas::filter
