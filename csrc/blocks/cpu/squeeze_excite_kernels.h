// The CPU kernels of squeeze-and-excitation, one set a level. Each works on some pixels of one image.
#pragma once

#include "blocks/cpu/bn_act_kernels.h"
#include "blocks/squeeze_excite.h"

namespace greedynas::norm {

// Sums go into arrays [padded(channels)], of which [channels] are valid at the end.
struct SqueezeKernel {
  // Sums of a.
  void (*squeeze)(const SqueezeExcite& layer, const Shape& part, Input x, float* sums);

  // y without gaps; gates [channels].
  void (*excite)(const SqueezeExcite& layer, const Shape& part, Input x, const float* gates, void* y);

  // Sums of grad * a.
  void (*excite_backward)(const SqueezeExcite& layer, const Shape& part, Input grad, Input x, float* sums);

  // grad_a = grad * gates + offsets. With a prologue: sums of the gradient before the activation, and of that times x.
  void (*squeeze_backward)(const SqueezeExcite& layer, const Shape& part, Input grad, Input x, const float* gates,
                           const float* offsets, void* grad_x, float* sums, float* products);

  // y = a, and grad_x from the gradient of a: grad * slope * scale; sums of grad * slope, and of that times x. With a
  // prologue; y and grad_x without gaps.
  void (*prologue_backward)(const SqueezeExcite& layer, const Shape& part, Input grad, Input x, void* y, void* grad_x,
                            float* sums, float* products);

  // sums [kGateSums][padded(channels)], and `excite` on the way.
  void (*gate_sums)(const SqueezeExcite& layer, const Shape& part, Input grad, Input x, const float* gates, float* sums,
                    void* y);
};

extern const SqueezeKernel kScalarSqueezeKernel;  // for tensors too narrow for any vector
extern const SqueezeKernel kPortableSqueezeKernel;
#ifdef GREEDYNAS_X86
extern const SqueezeKernel kAvx2SqueezeKernel;
extern const SqueezeKernel kAvx512SqueezeKernel;
extern const SqueezeKernel kAvx512Bf16SqueezeKernel;
#endif

// A row must have room for a vector of the kernel.
inline const SqueezeKernel& squeeze_kernel_for([[maybe_unused]] cpu::Isa isa, int channels) {
#ifdef GREEDYNAS_X86
  if (isa >= cpu::Isa::avx512_bf16 && channels >= 16) return kAvx512Bf16SqueezeKernel;
  if (isa == cpu::Isa::avx512 && channels >= 16) return kAvx512SqueezeKernel;
  if (isa >= cpu::Isa::avx2 && channels >= 8) return kAvx2SqueezeKernel;
#endif
  return channels >= 4 ? kPortableSqueezeKernel : kScalarSqueezeKernel;
}

}  // namespace greedynas::norm
