#include "blocks/pooled_pointwise.h"

#include <algorithm>

#include "blocks/cpu/pointwise_blocks.h"

namespace greedynas::blocks {
namespace {

using norm::Input;
using norm::Prologue;

struct Layers {
  const PooledPointwise& layer;

  std::int64_t rows() const { return layer.images * layer.pixels; }
  Pointwise convolution() const { return {rows(), layer.in, layer.out, layer.threads, 1, 0, layer.storage}; }
  PointwiseInput input() const { return {layer.x, Prologue::none, nullptr, nullptr, nullptr, 0}; }
  norm::Channels channels(const float* moments) const {
    return {moments, moments + layer.out, layer.norm.weight, layer.norm.bias, layer.norm.eps};
  }
  norm::SqueezeExcite pooling(const float* scale_shift) const {
    norm::Shape image = norm::shape_of(layer.storage, rows(), layer.out);
    image.rows = layer.pixels;
    return {image,        layer.images, norm::prologue_of(layer.activation), scale_shift, scale_shift + layer.out,
            layer.threads};
  }
};

struct Space {
  float *affine, *grad_affine, *no_gates, *rest;
  void* grad_z;
  std::int64_t floats;

  Space(const Layers& layers, float* workspace) {
    const PooledPointwise& layer = layers.layer;
    Pieces pieces(workspace);
    affine = pieces.take(2 * layer.out);
    grad_affine = pieces.take(2 * layer.out);
    no_gates = pieces.take(layer.images * layer.out);
    grad_z = pieces.take(norm::floats_for(layer.storage, layers.rows() * layer.out));
    rest =
        pieces.take(std::max(workspace_floats(layers.convolution()), norm::workspace_floats(layers.pooling(nullptr))));
    floats = pieces.taken();
  }
};

}  // namespace

std::int64_t workspace_floats(const PooledPointwise& layer) { return Space(Layers{layer}, nullptr).floats; }

void forward(const PooledPointwise& layer, float* moments, void* z, float* workspace, float* pooled) {
  const Layers layers{layer};
  const Space space(layers, workspace);
  pointwise(layers.convolution(), layers.input(), layer.weight, space.rest, z, moments, moments + layer.out);
  norm::affine(layer.out, layers.channels(moments), space.affine, space.affine + layer.out);
  norm::squeeze(layers.pooling(space.affine), {z, layer.out}, space.rest, pooled);
}

void backward(const PooledPointwise& layer, const float* moments, const void* z, const float* grad_pooled,
              float* workspace, const PooledPointwiseGradients& gradients) {
  const Layers layers{layer};
  const Space space(layers, workspace);
  const norm::Channels channels = layers.channels(moments);
  const Input of_z{z, layer.out};
  norm::affine(layer.out, channels, space.affine, space.affine + layer.out);
  float *const grad_scale = space.grad_affine, *const grad_shift = grad_scale + layer.out;
  // As squeeze-and-excitation with gates of zero: what reaches a pixel is its share of the mean's gradient alone.
  std::fill_n(space.no_gates, layer.images * layer.out, 0.0F);
  norm::squeeze_backward(layers.pooling(space.affine), of_z, of_z, space.no_gates, grad_pooled, space.rest,
                         space.grad_z, grad_scale, grad_shift);
  norm::known_from_affine(layer.out, channels, grad_scale, grad_shift, gradients.norm.weight, gradients.norm.bias);
  pointwise_backward(layers.convolution(),
                     {{space.grad_z, layer.out}, of_z, &channels, {gradients.norm.weight, gradients.norm.bias, true}},
                     layers.input(), layer.weight, {nullptr, 0}, space.rest,
                     {gradients.x, nullptr, nullptr, gradients.weight});
}

}  // namespace greedynas::blocks
