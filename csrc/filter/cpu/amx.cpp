#include "cpu/tiles_amx.h"
#include "cpu/vec_avx512.h"
#include "filter/cpu/tile_block.h"

namespace greedynas::filter {

const Kernel kAmxKernel = tile_kernel_over<cpu::TilesAmx, cpu::VecAvx512<true>>("amx");

}  // namespace greedynas::filter
