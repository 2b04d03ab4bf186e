// The CPU kernels of bn_act, one set a level. Each works on some rows of a matrix; see blocks/bn_act.h for the layout.
#pragma once

#include "blocks/bn_act.h"
#include "cpu/isa.h"

namespace greedynas::norm {

// Accumulators are arrays [padded(channels)]: vectors that overlap at the last channels have room of their own.
constexpr std::int64_t padded(std::int64_t channels) { return (channels + 15) / 16 * 16; }

// float32 [channels] each: z = (x - mean) * scale + bias; in the backward pass
// grad_x = scale * grad_z + (x - mean) * slope + offset.
struct Coefficients {
  const float *mean, *scale, *bias, *slope, *offset;
};

constexpr int kCoefficients = 4;  // scale, bias, slope, offset

// For `backward` without activation; memory: kCoefficients * padded(channels) floats.
Coefficients known_coefficients(std::int64_t rows, int num_channels, const Channels& channels,
                                const KnownGradients& known, float* memory);

struct Kernel {
  const char* name;  // of the level

  // Mean less `shift` (a row) and sum of squared differences from the mean, of `rows` > 0 rows, into [channels] each.
  void (*moments)(const Shape& shape, Input x, const void* shift, float* mean, float* squares);

  void (*forward)(const BnAct& layer, Input x, const Coefficients& c, Input residual, void* y);

  // Sums of grad_z and of grad_z * (x - mean) over the rows, into [channels] each.
  void (*backward_sums)(const BnAct& layer, Input grad, Input x, const Coefficients& c, Input residual, float* sums,
                        float* products);

  // grad_residual may be nullptr.
  void (*backward)(const BnAct& layer, Input grad, Input x, const Coefficients& c, Input residual, void* grad_x,
                   void* grad_residual);
};

extern const Kernel kScalarKernel;  // for tensors too narrow for any vector
extern const Kernel kPortableKernel;
#ifdef GREEDYNAS_X86
extern const Kernel kAvx2Kernel;
extern const Kernel kAvx512Kernel;
extern const Kernel kAvx512Bf16Kernel;
#endif

// A row must have room for a vector of the kernel.
inline const Kernel& kernel_for([[maybe_unused]] cpu::Isa isa, int channels) {
#ifdef GREEDYNAS_X86
  if (isa >= cpu::Isa::avx512_bf16 && channels >= 16) return kAvx512Bf16Kernel;
  if (isa == cpu::Isa::avx512 && channels >= 16) return kAvx512Kernel;
  if (isa >= cpu::Isa::avx2 && channels >= 8) return kAvx2Kernel;
#endif
  return channels >= 4 ? kPortableKernel : kScalarKernel;
}

}  // namespace greedynas::norm
