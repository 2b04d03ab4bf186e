// Which instruction set the CPU kernels use: the best that is compiled in and that this machine has, or a forced one.
#pragma once

#include <string_view>
#include <vector>

namespace greedynas::cpu {

// Each level includes those before it. `avx2` means AVX2, FMA and BMI2; `avx512` F, BW, DQ and VL; `avx512_bf16`
// products of bf16 pairs on top (Zen 4, Cooper Lake); `amx` AMX-TILE and AMX-BF16, and the operating system's
// permission to use tiles.
enum class Isa { portable, avx2, avx512, avx512_bf16, amx };

std::string_view name_of(Isa isa);

// The levels that this build contains, lowest first.
std::vector<Isa> compiled();

// Whether this machine can run a level (and this build contains it).
bool available(Isa isa);

// The level to use: the highest available one, or the one that the environment variable GREEDYNAS_CPU_ISA names. The
// variable is read at every call. Throws std::invalid_argument if it names an unknown or unavailable level.
Isa selected();

}  // namespace greedynas::cpu
