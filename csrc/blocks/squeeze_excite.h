// The passes over the images of squeeze-and-excitation (https://arxiv.org/abs/1709.01507), forward and backward.
//
// A tensor [N, C, H, W] in channels-last memory is a matrix [images * pixels, channels], see bn_act.h. What is squeezed
// and gated is a = x, or with a prologue a = act(x * scale + shift), which is never stored. The small products between
// the means and the gates are the caller's business. Sums are taken in chunks that depend on the shape alone.
#pragma once

#include "blocks/bn_act.h"

namespace greedynas::norm {

enum class Prologue { none, affine, affine_relu, affine_hard_swish, affine_silu, affine_relu6 };

// Scale and shift, and then this activation.
constexpr Prologue prologue_of(Activation activation) {
  return static_cast<Prologue>(static_cast<int>(activation) + 1);
}
static_assert(prologue_of(Activation::identity) == Prologue::affine &&
              prologue_of(Activation::relu) == Prologue::affine_relu &&
              prologue_of(Activation::hard_swish) == Prologue::affine_hard_swish &&
              prologue_of(Activation::silu) == Prologue::affine_silu &&
              prologue_of(Activation::relu6) == Prologue::affine_relu6);

struct SqueezeExcite {
  Shape image;  // rows: the pixels of one image, at least one
  std::int64_t images;
  Prologue prologue;
  const float *scale, *shift;  // [channels], with a prologue
  int threads;
};

std::int64_t workspace_floats(const SqueezeExcite& layer);

// Means of a over the pixels: [images, channels].
void squeeze(const SqueezeExcite& layer, Input x, float* workspace, float* means);

// y [images * pixels, channels] = a * gates [images, channels].
void excite(const SqueezeExcite& layer, Input x, const float* gates, void* y);

// Sums of grad * a over the pixels: [images, channels].
void excite_backward(const SqueezeExcite& layer, Input grad, Input x, float* workspace, float* grad_gates);

// grad_x [images * pixels, channels] from grad_a = grad * gates + grad_means / pixels, and with a prologue the
// gradients of scale and shift.
void squeeze_backward(const SqueezeExcite& layer, Input grad, Input x, const float* gates, const float* grad_means,
                      float* workspace, void* grad_x, float* grad_scale, float* grad_shift);

// Sums over the pixels of an image by which the backward pass after a layer that knows grad needs no pass of its own:
// with slope that of the activation, of grad * a, slope * grad, slope * grad * x, slope, slope * x.
enum GateSum { kGateProduct, kGateGrad, kGateGradX, kGateSlope, kGateSlopeX, kGateSums };

// With a prologue, the gradients of scale and shift that squeeze_backward gives, of such sums
// [kGateSums, images, channels].
void affine_gradients(const SqueezeExcite& layer, const float* gate_sums, const float* gates, const float* grad_means,
                      float* grad_scale, float* grad_shift);

}  // namespace greedynas::norm
