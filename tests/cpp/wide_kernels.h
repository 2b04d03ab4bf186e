// Kernels over stand-ins for AVX-512 vectors, its bf16 pairs and AMX tiles: their logic runs on machines without them.
#pragma once

#include "filter/cpu/kernels.h"

extern const greedynas::filter::Kernel kWideKernel;
extern const greedynas::filter::Kernel kWidePairKernel;
extern const greedynas::filter::Kernel kWideTileKernel;
