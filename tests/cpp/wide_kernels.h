// Kernels over stand-ins for AVX-512 vectors and AMX tiles: their logic runs on machines that lack both.
#pragma once

#include "filter/cpu/kernels.h"

extern const greedynas::filter::Kernel kWideKernel;
extern const greedynas::filter::Kernel kWideTileKernel;
