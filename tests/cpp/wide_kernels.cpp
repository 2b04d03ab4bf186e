#include "wide_kernels.h"

#include "cpu/vec_generic.h"
#include "filter/cpu/pair_block.h"
#include "filter/cpu/tile_block.h"
#include "pairs_emulated.h"
#include "tiles_emulated.h"

using Wide = greedynas::cpu::VecGeneric<16, 6>;  // rows as the AVX-512 vectors have

using greedynas::filter::kernel_over;
using greedynas::filter::Pairs;
using greedynas::filter::tile_kernel_over;

const greedynas::filter::Kernel kWideKernel = kernel_over<Wide>("wide");
const greedynas::filter::Kernel kWidePairKernel = kernel_over<Wide, Pairs<PairsEmulated<Wide>>>("wide pairs");
const greedynas::filter::Kernel kWideTileKernel = tile_kernel_over<TilesEmulated, Wide>("wide tiles");
