// LSTM cells in training, one set of kernels a level.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace greedynas::filter {

// Rows have `width` units, a multiple of kCellUnits, a gate after the other.
inline constexpr int kCellUnits = 16;

struct CellKernel {
  const char* name;  // of the level

  // gates [rows, 4, width]: before the activations, and then after them. previous: cell states, or nullptr for zeros.
  void (*forward)(std::int64_t rows, int width, float* gates, const float* previous, float* cell, float* tanh_cell,
                  float* state);

  // Gradients of the gates before the activations, [rows, 4, width], and of the previous cell states. grad_cell: what
  // comes from the step after, or nullptr.
  void (*backward)(std::int64_t rows, int width, const float* gates, const float* previous, const float* tanh_cell,
                   const float* grad_state, const float* grad_cell, float* grad_gates, float* grad_previous);
};

extern const CellKernel kCellsPortable;
#ifdef GREEDYNAS_X86
extern const CellKernel kCellsAvx2;
extern const CellKernel kCellsAvx512;
#endif

inline const CellKernel& cell_kernel_for([[maybe_unused]] cpu::Isa isa) {
#ifdef GREEDYNAS_X86
  if (isa >= cpu::Isa::avx512) return kCellsAvx512;
  if (isa == cpu::Isa::avx2) return kCellsAvx2;
#endif
  return kCellsPortable;
}

}  // namespace greedynas::filter
