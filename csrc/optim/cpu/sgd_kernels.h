// The CPU kernels of the optimizer, one set a level. Each works on neighbouring elements that are updated alike.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "optim/sgd.h"

namespace greedynas::optim {

// The numbers of a step as the kernels use them; decay 0 where there is no weight decay.
struct Coefficients {
  float scale, decay, momentum, lr, ema_decay, ema_share;
  bool nesterov, zero;
};

struct Kernel {
  const char* name;  // of the level

  // From the given addresses on; no momentum or no average: nullptr.
  void (*update)(const Coefficients& c, const Buffers& from, std::int64_t count);

  double (*sum_of_squares)(const float* values, std::int64_t count);
};

extern const Kernel kPortableKernel;
#ifdef GREEDYNAS_X86
extern const Kernel kAvx2Kernel;
extern const Kernel kAvx512Kernel;
#endif

inline const Kernel& kernel_for([[maybe_unused]] cpu::Isa isa) {
#ifdef GREEDYNAS_X86
  if (isa >= cpu::Isa::avx512) return kAvx512Kernel;
  if (isa >= cpu::Isa::avx2) return kAvx2Kernel;
#endif
  return kPortableKernel;
}

}  // namespace greedynas::optim
