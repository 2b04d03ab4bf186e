#include "wide_kernels.h"

#include "cpu/vec_generic.h"
#include "filter/cpu/tile_block.h"
#include "tiles_emulated.h"

// Six rows, as the AVX-512 vectors have.
struct Wide : greedynas::cpu::VecGeneric<16> {
  using Base = greedynas::cpu::VecGeneric<16>;
  static constexpr int rows = 6;

  Wide() = default;
  Wide(Base base) : Base(base) {}
  static Wide set(float value) { return Base::set(value); }
  static Wide broadcast(const float* p) { return Base::broadcast(p); }
  static Wide load(const float* p) { return Base::load(p); }
  static Wide load_to_register(const float* p) { return Base::load(p); }
};

using greedynas::filter::kernel_over;
using greedynas::filter::tile_kernel_over;

const greedynas::filter::Kernel kWideKernel = kernel_over<Wide>("wide");
const greedynas::filter::Kernel kWideTileKernel = tile_kernel_over<TilesEmulated, Wide>("wide tiles");
